"""Augmentation of training images, to bridge the gap between renders and photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_TURN = 0.06  # radians: rotation error of an aligned crop
MAX_MOVE = 0.05  # in coordinates from -1 to 1: a fortieth of the width
MAX_ZOOM = 0.06
BRIGHTNESS = 0.15
CONTRAST = 0.2
TINT = 0.08


def _uniform(n: int, reach: float) -> Tensor:
    return (torch.rand(n) * 2 - 1) * reach


def jitter_geometry(images: Tensor) -> Tensor:
    """Flip half of `images` [n, 3, h, w]; rotate, zoom and shift each; edges are reflected."""
    n = len(images)
    turn, zoom = _uniform(n, MAX_TURN), 1 + _uniform(n, MAX_ZOOM)
    flip = (torch.rand(n) < 0.5).float() * -2 + 1
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    move = torch.stack([_uniform(n, MAX_MOVE), _uniform(n, MAX_MOVE)], dim=1)
    affine = torch.stack(
        [
            torch.stack([cos * flip, -sin, move[:, 0]], dim=1),
            torch.stack([sin * flip, cos, move[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def jitter_colour(images: Tensor) -> Tensor:
    """Change brightness, contrast and tint of each image; clamped to [-1, 1]."""
    n = len(images)
    contrast = 1 + _uniform(n, CONTRAST)[:, None, None, None]
    offset = _uniform(n, BRIGHTNESS)[:, None] + _uniform(n * 3, TINT).view(n, 3)
    return (images * contrast + offset[:, :, None, None]).clamp(-1, 1)


def soften(images: Tensor) -> Tensor:
    """Blur a random third of `images` with a 3x3 binomial kernel."""
    taps = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
    chosen = (torch.rand(len(images)) < 1 / 3)[:, None, None, None]
    return torch.where(chosen, blurred, images)


def jitter(images: Tensor) -> Tensor:
    """Apply geometry and colour to a batch [n, 3, h, w] in [-1, 1]."""
    return jitter_colour(jitter_geometry(images))


def augment(images: Tensor) -> Tensor:
    """Apply geometry, colour and blur to a batch [n, 3, h, w] in [-1, 1]."""
    return soften(jitter(images))


def flip_half(images: Tensor) -> Tensor:
    """Mirror a random half of a batch [n, 3, h, w], as in the published trainings."""
    chosen = (torch.rand(len(images)) < 0.5)[:, None, None, None]
    return torch.where(chosen, images.flip(-1), images)
