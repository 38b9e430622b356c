"""MoCo's similarity, compared with a second implementation, in the published layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.metrics import MetricEvaluator
from pipeline.metrics.moco import ResNet50, read_moco

PREFIX = "module.encoder_q."


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """State dict with a published file's keys and random values, including unused entries."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = ResNet50().state_dict()
        for key, value in weights.items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1)
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    extra = {
        "module.encoder_q.fc.0.weight": torch.zeros(2, 2),
        "module.encoder_k.conv1.weight": torch.zeros(2),
        "module.queue": torch.zeros(2, 2),
    }
    return {PREFIX + key: value for key, value in weights.items()} | extra


def features_of(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Compute features by a ResNet-50 written as plain functions of a dictionary."""

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var = weights[f"{key}.running_mean"], weights[f"{key}.running_var"]
        scale = weights[f"{key}.weight"] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + weights[f"{key}.bias"][
            :, None, None
        ]

    def conv(x: Tensor, key: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{key}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    pixels = (torch.arange(224) * (images.shape[-1] / 224)).long()  # nearest neighbour
    x = images[..., pixels, :][..., pixels]
    x = F.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride), f"{name}.bn2").relu()
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
    features = x.mean(dim=(2, 3))
    return features / features.norm(dim=1, keepdim=True)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_features_follow_the_published_preparation(state: dict[str, Tensor]) -> None:
    weights = {key.removeprefix(PREFIX): value for key, value in state.items()}
    features = read_moco(state, "seeded").embed(images(1))
    torch.testing.assert_close(features, features_of(weights, images(1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1))


def test_the_published_layout_loads(seeded: Callable[..., dict[str, Tensor]]) -> None:
    features = read_moco(seeded("moco_resnet50", "moco/"), "seeded").embed(images(1))
    assert features.shape == (1, 2048)
    assert features.isfinite().all()


def test_gradients_reach_the_image(state: dict[str, Tensor]) -> None:
    picture = images(1)[..., :64, :64].requires_grad_()
    read_moco(state, "seeded").embed(picture).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


def test_the_evaluator_recognises_the_keys(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"epoch": 800, "state_dict": state}, tmp_path / "moco_v2.pt")
    evaluator = MetricEvaluator(identity=str(tmp_path / "moco_v2.pt"))
    assert "MoCo v2 ResNet-50, moco_v2.pt (sha256" in evaluator.definitions["id_similarity"]
    pictures = images()
    steps = torch.stack([pictures, torch.ones_like(pictures)], dim=1)
    measures = evaluator.measure(pictures, steps, torch.zeros(2, 2, 10, 512), torch.zeros(10, 512))
    np.testing.assert_allclose(measures["id_similarity"][:, 0], 1, atol=1e-5)
    assert (measures["id_similarity"][:, 1] < measures["id_similarity"][:, 0] - 1e-5).all()
    assert measures.identity_missed == 0


def test_half_precision_is_read_as_float32(state: dict[str, Tensor]) -> None:
    half = {key: value.half() for key, value in state.items()}
    features = read_moco(half, "half").embed(images(1))
    assert features.dtype == torch.float32
    assert features @ read_moco(state, "whole").embed(images(1)).T > 0.999


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layer4.2.bn3.bias"])
def test_a_wrong_shape_is_refused_in_one_line(state: dict[str, Tensor], key: str) -> None:
    changed = {**state, PREFIX + key: torch.zeros(3)}
    with pytest.raises(ModelError, match=f"no MoCo v2 ResNet-50: 1 of 318 .*{key}"):
        read_moco(changed, "moco.pt")
