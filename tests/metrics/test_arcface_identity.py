import numpy as np
import pytest
import torch

from pipeline.metrics import identity
from pipeline.metrics.arcface import ArcFaceIRSE50, CurricularFace, read_arcface
from pipeline.metrics.arcface_identity import (
    TEMPLATE,
    ArcFaceIdentity,
    CurricularFaceIdentity,
    similarity_to_template,
    warp_faces,
)
from tests.metrics.conftest import COPIES, warps


def test_ir_se50_features_of_whole_crops_match(seeded, inputs, identity_golden, golden):
    network = read_arcface(seeded("ir_se50", "ir_se50/"), "seeded")
    features = ArcFaceIdentity(network, "seeded").embed(inputs).numpy()
    np.testing.assert_allclose(features, identity_golden["ir_se50_feats"], atol=1e-5)
    cosine = golden["identity"]["ir_se50_cos_sine_astronaut"]
    assert features[0] @ features[1] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    ("network", "kind"),
    [(ArcFaceIRSE50, ArcFaceIdentity), (CurricularFace, CurricularFaceIdentity)],
)
def test_the_network_decides_how_faces_are_cropped(monkeypatch, network, kind):
    with torch.device("meta"):
        made = network()
    monkeypatch.setattr(identity, "read_state", lambda *_: ({}, "0" * 64))
    monkeypatch.setattr(identity, "read_arcface", lambda *_: made)
    assert isinstance(identity.load_identity("weights.pth"), kind)


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


def test_the_template_maps_to_itself():
    np.testing.assert_allclose(similarity_to_template(TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
