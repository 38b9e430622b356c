import dlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.dlib_models import dlib_model
from pipeline.errors import ModelError
from pipeline.metrics import MetricEvaluator
from pipeline.metrics.arcface import ArcFaceIRSE50, CurricularFace
from pipeline.metrics.arcface_identity import ArcFaceIdentity, CurricularFaceIdentity
from pipeline.metrics.dlib_identity import CHIP_PADDING, WEIGHTS, DlibIdentity
from pipeline.metrics.dlib_resnet import CHIP, read_dlib_resnet
from pipeline.metrics.face_child import find_face
from pipeline.metrics.face_pool import begin_views, landmark_file
from pipeline.metrics.identity import load_identity
from pipeline.models.pixels import to_pixels


@pytest.fixture(scope="module")
def identity() -> DlibIdentity:
    return DlibIdentity()


def test_torch_descriptors_equal_dlibs(people):
    path = dlib_model(WEIGHTS)
    face = find_face(landmark_file(5), *begin_views(people[:1])()[0])
    chip = dlib.get_face_chip(to_pixels(people)[0], face, CHIP, CHIP_PADDING)
    expected = dlib.face_recognition_model_v1(str(path)).compute_face_descriptor(chip)
    network = read_dlib_resnet(path.read_bytes())
    descriptor = network(torch.from_numpy(chip).permute(2, 0, 1)[None].float())[0]
    np.testing.assert_allclose(descriptor.numpy(), np.array(expected), atol=1e-6)


def test_another_file_is_refused_as_weights():
    with pytest.raises(ModelError, match="do not have the layout"):
        read_dlib_resnet(dlib_model("shape_predictor_5_face_landmarks.dat").read_bytes())


def test_a_cut_off_weight_file_is_refused():
    with pytest.raises(ModelError, match="do not have the layout"):
        read_dlib_resnet(dlib_model(WEIGHTS).read_bytes()[:-1000])


def test_a_blurred_copy_is_closest_to_its_original(identity, people):
    blurred = F.avg_pool2d(people, 5, stride=1, padding=2)
    cosines = identity.embed(people) @ identity.embed(blurred).T
    strangers = cosines[~torch.eye(3, dtype=torch.bool)]
    assert cosines.diagonal().min() > 0.97
    assert strangers.max() < 0.93


def test_descriptors_have_unit_length(identity, people):
    torch.testing.assert_close(identity.embed(people).norm(dim=1), torch.ones(3))


def test_a_missing_face_affects_no_other(identity, people):
    expected = identity.embed(people)
    people = people.clone()
    people[1] = 0.2
    rows = identity.embed(people)
    assert rows.isnan().all(dim=1).tolist() == [False, True, False]
    torch.testing.assert_close(rows[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=0)


def test_small_faces_are_recognised(identity, people):
    small = F.interpolate(people, 64, mode="area")
    cosines = (identity.embed(small) * identity.embed(people)).sum(dim=1)
    assert cosines.min() > 0.93


def test_the_largest_of_two_faces_is_taken(people):
    scene = torch.zeros(1, 3, 256, 512)
    scene[:, :, :, 256:] = people[0]
    scene[:, :, 40:220, 30:210] = F.interpolate(people[1:2], 180, mode="area")
    (view,) = begin_views(F.interpolate(scene, scale_factor=0.9))()
    face = find_face(landmark_file(5), *view)
    assert face is not None
    assert face.rect.left() > 230


def test_missed_faces_are_nan_and_counted(people):
    targets = people.clone()
    targets[2] = 0
    steps = torch.stack([people, people], dim=1)
    steps[0, 0] = 0
    evaluator = MetricEvaluator(best_step_by="id_similarity")
    measures = evaluator.measure(targets, steps, torch.zeros(3, 2, 10, 512), torch.zeros(10, 512))
    missing = np.isnan(measures["id_similarity"])
    assert missing.tolist() == [[True, False], [False, False], [True, True]]
    assert measures.identity_missed == 3
    assert measures.best_step.tolist() == [2, 1, 2]
    np.testing.assert_allclose(measures["id_similarity"][1], 1, atol=1e-5)
    embedded = evaluator.identity.embed(people[:2])
    for face in range(2):
        np.testing.assert_array_equal(measures.identity(face), embedded[face])
    assert measures.identity(2) is None


def test_non_finite_images_are_no_missed_faces(people):
    steps = people[:, None].clone()
    steps[0, 0, 0, 0, 0] = float("nan")
    measures = MetricEvaluator().measure(
        people, steps, torch.zeros(3, 1, 10, 512), torch.zeros(10, 512)
    )
    assert np.isnan(measures["id_similarity"]).tolist() == [[True], [False], [False]]
    assert measures.identity_missed == 0


@torch.no_grad()
def test_only_curricularface_needs_a_detected_face(people):
    scene = torch.stack([people[0], torch.zeros_like(people[0])])
    torch.manual_seed(0)
    curricular = CurricularFaceIdentity(CurricularFace().eval(), "random").embed(scene)
    fixed = ArcFaceIdentity(ArcFaceIRSE50().eval(), "random").embed(scene)
    assert curricular.isnan().all(dim=1).tolist() == [False, True]
    assert fixed.isfinite().all()
    torch.testing.assert_close(curricular[0].norm().item(), 1.0)


def test_no_identity_network_is_loaded_on_request():
    assert load_identity("none") is None


def test_the_definition_names_the_weights():
    definition = MetricEvaluator().definitions["id_similarity"]
    assert WEIGHTS in definition
    assert "null where HOG finds no face" in definition


@pytest.mark.parametrize("name", ["dlibb", "None", "arcface"])
def test_a_mistyped_network_lists_the_choices(name):
    with pytest.raises(ModelError, match=f"called '{name}': expected dlib, none, or a weight file"):
        load_identity(name)
