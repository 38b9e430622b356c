"""Changes to training images that stand for the gap between renders and photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_TURN = 0.06  # radians: what an aligned crop may be off by
LARGEST_MOVE = 0.05  # where the width is from -1 to 1: a fortieth of it
LARGEST_ZOOM = 0.06
BRIGHTNESS = 0.15
CONTRAST = 0.2
TINT = 0.08


def _uniform(n: int, reach: float) -> Tensor:
    return (torch.rand(n) * 2 - 1) * reach


def jitter_geometry(images: Tensor) -> Tensor:
    """Flip half of `images` [n, 3, h, w]; turn, zoom and move each a little, edges reflected."""
    n = len(images)
    turn, zoom = _uniform(n, LARGEST_TURN), 1 + _uniform(n, LARGEST_ZOOM)
    flip = (torch.rand(n) < 0.5).float() * -2 + 1
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    move = torch.stack([_uniform(n, LARGEST_MOVE), _uniform(n, LARGEST_MOVE)], dim=1)
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


def augment(images: Tensor) -> Tensor:
    """All of the above on a batch [n, 3, h, w] in [-1, 1]."""
    return soften(jitter_colour(jitter_geometry(images)))


def augment_alike(images: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
    """`images` as `augment` changes them, and `looks` moved and tinted with them, never softened.

    Both [n, 3, h, w] in [-1, 1]: photographs, and the same in another look.
    """
    drawn = torch.get_rng_state()
    changed_looks = jitter_colour(jitter_geometry(looks))
    torch.set_rng_state(drawn)
    return augment(images), changed_looks


def flip_alike(images: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
    """Both, [n, 3, h, w], with the same random half mirrored."""
    drawn = torch.get_rng_state()
    flipped = flip_half(looks)
    torch.set_rng_state(drawn)
    return flip_half(images), flipped


def flip_half(images: Tensor) -> Tensor:
    """Mirror a random half of a batch [n, 3, h, w]: what the published encoders were trained on."""
    chosen = (torch.rand(len(images)) < 0.5)[:, None, None, None]
    return torch.where(chosen, images.flip(-1), images)
