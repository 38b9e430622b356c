from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from pipeline.metrics.lpips import load_lpips
from pipeline.training.losses import ImageLoss, ImageWeights, ShiftedLpips, block_means


@dataclass
class Colours:
    """Return the mean colour, normalised, as features."""

    def embed(self, images):
        return F.normalize(images.mean(dim=(2, 3)))


@pytest.fixture
def target():
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32) * 2 - 1


def test_block_means_are_exact():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert block_means(images, 2)[0, 0, 0, 0] == images[0, 0, :4, :4].mean()


def test_lpips_of_equal_images_is_zero(target):
    images = target.clone().requires_grad_()
    loss = ShiftedLpips(load_lpips(), target)(images)
    assert loss.abs().max() < 1e-6
    loss.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_loss_is_the_weighted_sum_of_terms(target):
    weights = ImageWeights(l1=2.0, l2=3.0, blocks=0.5)
    terms = ImageLoss(weights, target)(target * 0.5)
    assert set(terms) == {"l1", "l2", "blocks", "loss"}
    assert torch.allclose(terms["loss"], 2 * terms["l1"] + 3 * terms["l2"] + 0.5 * terms["blocks"])


def test_crop_terms_ignore_pixels_outside_the_face(target):
    loss = ImageLoss(ImageWeights(l2=1.0, l2_crop=1.0, lpips_crop=1.0), target)
    border = target.clone()
    border[:, :, :3] = 0
    terms = loss(border)
    assert terms["l2"] > 0
    assert terms["l2_crop"] == 0
    assert terms["lpips_crop"].abs() < 1e-6


def test_feature_term_is_zero_for_equal_features(target):
    loss = ImageLoss(ImageWeights(moco=1.0), target, {"moco": Colours()})
    assert loss(target * 0.3)["moco"].abs() < 1e-5  # the same colour, but darker
    assert loss(-target)["moco"] == pytest.approx(2.0)
