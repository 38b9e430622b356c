import torch

from pipeline.training.augment import (
    augment,
    flip_half,
    jitter_colour,
    jitter_geometry,
    soften,
)
from pipeline.training.encoder_task import Faces, augment_faces


def test_augmented_images_keep_shape_and_range():
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    changed = augment(images)
    assert changed.shape == images.shape
    assert changed.abs().max() <= 1
    assert not torch.equal(changed, images)


def test_geometry_adds_no_new_colours():
    flat = torch.full((4, 3, 32, 32), 0.25)
    assert torch.allclose(jitter_geometry(flat), flat, atol=1e-5)


def test_colour_changes_are_uniform_per_image():
    flat = torch.zeros(4, 3, 8, 8)
    assert jitter_colour(flat).flatten(2).std(dim=2).max() < 1e-6


def test_blur_never_raises_contrast():
    torch.manual_seed(1)
    noise = torch.randn(30, 3, 16, 16)
    ratios = soften(noise).flatten(1).std(dim=1) / noise.flatten(1).std(dim=1)
    kept = (ratios - 1).abs() < 1e-6
    assert 0 < int(kept.sum()) < 30
    assert ratios[~kept].max() < 0.7


def test_paired_images_get_the_same_augmentation():
    smooth = torch.linspace(-0.5, 0.5, 32).expand(8, 3, 32, 32)
    changed = augment_faces(Faces(smooth, smooth.clone()))
    assert (changed.input - changed.target).abs().max() < 0.05  # except for the blur


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 8).expand(40, 3, 8, 8)
    mirrored = (flip_half(ramp)[:, 0, 0, 0] > 0).sum()
    assert 8 < int(mirrored) < 32


def test_paired_images_are_mirrored_together():
    ramp = torch.linspace(-1, 1, 8).expand(40, 3, 8, 8)
    images, targets = augment_faces(Faces(ramp, -ramp), flip_half, flip_half)
    assert torch.equal(images, -targets)
    assert 0 < int((images[:, 0, 0, 0] > 0).sum()) < 40
