import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.metrics.arcface import (
    FFHQ_WINDOW,
    ArcFaceIRSE50,
    CurricularFace,
    read_arcface,
    window_of,
)
from tests.metrics.conftest import COPIES, warps


def test_curricularface_features_and_cosines_match(seeded, identity_golden, golden):
    network = read_arcface(seeded("curricularface_ir101", "curricularface/"), "seeded")
    assert isinstance(network, CurricularFace)
    features = network(warps(identity_golden, *COPIES)).numpy()
    for feature, name in zip(features, COPIES, strict=True):
        np.testing.assert_allclose(feature, identity_golden[f"{name}_feat"], atol=1e-5)
        cosine = golden["identity"]["seeded_pairwise_cos"][name]
        assert feature @ features[0] == pytest.approx(cosine, abs=1e-5)


def test_half_precision_is_read_as_float32(seeded, identity_golden):
    state = seeded("ir_se50", "ir_se50/")
    faces = warps(identity_golden, *COPIES[:2])
    features = read_arcface({key: value.half() for key, value in state.items()}, "half")(faces)
    assert features.dtype == torch.float32
    assert (features * read_arcface(state, "whole")(faces)).sum(dim=1).min() > 0.999


def test_the_window_is_the_published_one():
    rows = torch.arange(256.0)[:, None].expand(1, 3, 256, 256)
    inner = window_of(rows, FFHQ_WINDOW)
    assert inner.shape == (1, 3, 188, 188)
    assert (inner[0, 0, 0, 0], inner[0, 0, -1, 0]) == (35, 222)
    assert window_of(torch.zeros(1, 3, 128, 64), FFHQ_WINDOW).shape == (1, 3, 94, 47)


@pytest.mark.parametrize("network", [ArcFaceIRSE50, CurricularFace])
def test_a_wrong_shape_is_refused_in_one_line(network):
    with torch.device("meta"):
        state = network().state_dict()
    state["output_layer.3.bias"] = torch.zeros(7)
    with pytest.raises(ModelError, match=r"1 of \d+ entries differ.*output_layer\.3\.bias"):
        read_arcface(state, "face.pth")


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ModelError, match="fit neither CurricularFace IR-101 nor ArcFace IR-SE50"):
        read_arcface({"conv1.weight": torch.zeros(3)}, "resnet.pth")
