import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.metrics.arcface import (
    TEMPLATE,
    ArcFaceIdentity,
    ArcFaceIRSE50,
    CurricularFace,
    CurricularFaceIdentity,
    read_arcface,
    similarity_to_template,
    warp_faces,
)

COPIES = ["same", "blur", "flip", "shift", "dark"]


@pytest.fixture(scope="module")
def curricular(seeded) -> CurricularFaceIdentity:
    state = seeded("curricularface_ir101", "curricularface/")
    identity = read_arcface(state, "seeded")
    assert isinstance(identity, CurricularFaceIdentity)
    return identity


@pytest.fixture(scope="module")
def ir_se50(seeded) -> ArcFaceIdentity:
    identity = read_arcface(seeded("ir_se50", "ir_se50/"), "seeded")
    assert isinstance(identity, ArcFaceIdentity)
    return identity


def warps(identity_golden, *names):
    pixels = np.stack([identity_golden[f"{name}_warp112"] for name in names])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_curricularface_features_and_cosines_match(curricular, identity_golden, golden):
    features = curricular.network(warps(identity_golden, *COPIES)).numpy()
    for feature, name in zip(features, COPIES, strict=True):
        np.testing.assert_allclose(feature, identity_golden[f"{name}_feat"], atol=1e-5)
        cosine = golden["identity"]["seeded_pairwise_cos"][name]
        assert feature @ features[0] == pytest.approx(cosine, abs=1e-5)


def test_ir_se50_features_of_whole_crops_match(ir_se50, inputs, identity_golden, golden):
    features = ir_se50.embed(inputs).numpy()
    np.testing.assert_allclose(features, identity_golden["ir_se50_feats"], atol=1e-5)
    cosine = golden["identity"]["ir_se50_cos_sine_astronaut"]
    assert features[0] @ features[1] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("name", [*COPIES, "astro_full512"])
def test_landmarks_give_the_published_warp_matrix(identity_golden, name):
    points = identity_golden[f"{name}_landmarks"][0].reshape(2, 5).T
    to_image = np.vstack([similarity_to_template(points), [0, 0, 1]])
    np.testing.assert_allclose(
        np.linalg.inv(to_image)[:2], identity_golden[f"{name}_tfm"], atol=1e-4
    )


def test_the_warp_itself_matches(identity_golden, inputs):
    points = identity_golden["same_landmarks"][0].reshape(2, 5).T
    matrix = torch.from_numpy(similarity_to_template(points))
    warp = warp_faces(inputs[1:], matrix[None])
    error = (warp - warps(identity_golden, "same")).abs() * 127.5
    assert error.mean() < 1


def test_a_warp_is_black_outside_the_image():
    shifted = torch.tensor([[[1.0, 0.0, -500.0], [0.0, 1.0, 0.0]]])
    assert warp_faces(torch.zeros(1, 3, 112, 112), shifted).eq(-1).all()


def test_points_on_the_template_are_not_moved():
    np.testing.assert_allclose(similarity_to_template(TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-9)


def test_a_file_of_half_precision_is_read_as_float32(seeded, inputs, ir_se50):
    halved = {key: value.half() for key, value in seeded("ir_se50", "ir_se50/").items()}
    features = read_arcface(halved, "half").embed(inputs)
    assert features.dtype == torch.float32
    assert (features * ir_se50.embed(inputs)).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("network", [ArcFaceIRSE50, CurricularFace])
def test_a_state_dict_with_one_wrong_shape_is_refused_in_one_line(network):
    with torch.device("meta"):
        state = network().state_dict()
    state["output_layer.3.bias"] = torch.zeros(7)
    with pytest.raises(ModelError, match=r"1 of \d+ entries differ.*output_layer\.3\.bias"):
        read_arcface(state, "face.pth")


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ModelError, match="fit neither CurricularFace IR-101 nor ArcFace IR-SE50"):
        read_arcface({"conv1.weight": torch.zeros(3)}, "resnet.pth")
