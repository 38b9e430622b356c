"""Cartoon filter for aligned faces: the training targets of the second demo generator.

Computed, so that no artwork and no licence is involved. Four steps: larger eyes, flat colour areas
with sharp edges, few saturated tones, dark lines.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

# Positions of face parts in FFHQ crops, as fractions of the side.
EYES = ((0.378, 0.475), (0.622, 0.475))
EYE_REACH = 0.155
EYE_ZOOM = 0.5  # at the centre; 0 at distance EYE_REACH
CHIN = (0.5, 0.93)
CHIN_REACH = 0.45
CHIN_PINCH = 0.25
HEAD = (0.5, 0.5)
HEAD_REACH = 0.62
LUMA = (0.299, 0.587, 0.114)


def cartoon(images: Tensor) -> Tensor:
    """Return cartoons of aligned faces [n, 3, s, s] in [-1, 1], same size and range."""
    shaped = warp(images)
    flat = flatten_areas(shaped)
    # In the background lines are noise: they fade with the distance from the head.
    ink = lines(shaped) * _nearness(_pixel_centres(images), HEAD, HEAD_REACH).sqrt()
    inked = darken_lines(soft_tones(saturate(flat)), ink)
    return inked.clamp(-1, 1)


def warp(images: Tensor) -> Tensor:
    """Enlarge the eyes and narrow the chin of aligned faces."""
    places = _pixel_centres(images)
    for eye in EYES:
        places = _zoomed(places, eye, EYE_REACH, EYE_ZOOM)
    pinch = _nearness(places, CHIN, CHIN_REACH) * CHIN_PINCH
    across = (places[..., 0] - 0.5) * (1 + pinch) + 0.5
    places = torch.stack([across, places[..., 1]], dim=-1)
    grid = (places * 2 - 1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _pixel_centres(images: Tensor) -> Tensor:
    """Return each pixel's centre as fractions of the side: [h, w, 2], x then y."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], dim=-1).to(images)


def _nearness(places: Tensor, centre: tuple[float, float], reach: float) -> Tensor:
    """Return a smooth weight [h, w]: 1 at `centre`, 0 from distance `reach` on."""
    distance = torch.linalg.vector_norm(places - places.new_tensor(centre), dim=-1)
    nearness: Tensor = (1 - (distance / reach).square()).clamp(min=0).square()
    return nearness


def _zoomed(places: Tensor, centre: tuple[float, float], reach: float, zoom: float) -> Tensor:
    pull = _nearness(places, centre, reach)[..., None] * zoom
    return places - (places - places.new_tensor(centre)) * pull


def flatten_areas(images: Tensor, rounds: int = 2, contrast: float = 0.24) -> Tensor:
    """Smooth areas and keep edges with a repeated bilateral filter."""
    for _ in range(rounds):
        images = _bilateral(images, contrast)
    return images


def _bilateral(images: Tensor, contrast: float, taps: int = 2, apart: int = 2) -> Tensor:
    """Filter with every second pixel of a 9x9 neighbourhood: a third of the work."""
    reach = taps * apart
    padded = F.pad(images, [reach] * 4, mode="reflect")
    height, width = images.shape[-2:]
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down, right in itertools.product(range(-taps, taps + 1), repeat=2):
        top, left = reach + down * apart, reach + right * apart
        other = padded[:, :, top : top + height, left : left + width]
        difference = (other - images).square().sum(dim=1, keepdim=True) / (2 * contrast**2)
        weight = torch.exp(-difference - (down**2 + right**2) / (2 * (taps / 1.3) ** 2))
        total, weights = total + weight * other, weights + weight
    return total / weights


def luma(images: Tensor) -> Tensor:
    """Return the brightness [n, 1, h, w] of images in [-1, 1], in [-1, 1]."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def saturate(images: Tensor, by: float = 1.65, lift: float = 0.10) -> Tensor:
    """Increase saturation and, a little, brightness."""
    grey = luma(images)
    return (grey + (images - grey) * by + lift * (1 - grey.square())).clamp(-1, 1)


def soft_tones(images: Tensor, tones: int = 5, softness: float = 0.18) -> Tensor:
    """Quantise brightness to `tones` steps with soft edges, keeping colours: cel shading."""
    grey = luma(images)
    scaled = (grey + 1) / 2 * tones
    below = scaled.floor()
    step = below + torch.sigmoid((scaled - below - 0.5) / softness * 1.5)
    toned = (step / tones * 2 - 1).clamp(-1, 1)
    return images + (toned - grey)


def lines(images: Tensor, fine: float = 1.2, sharpness: float = 14.0) -> Tensor:
    """Return line strength [n, 1, h, w] in [0, 1] by an extended difference of Gaussians.

    Source: Winnemöller, Kyprianidis, Olsen 2012.
    """
    grey = luma(images)
    difference = _blurred(grey, fine) - 0.98 * _blurred(grey, fine * 1.6)
    return (-(difference + 0.012) * sharpness).clamp(0, 1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1).to(images)
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    across = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="reflect"), taps[None, None, None])
    return F.conv2d(F.pad(across, (0, 0, reach, reach), mode="reflect"), taps[None, None, :, None])


def darken_lines(images: Tensor, ink: Tensor, strength: float = 0.85) -> Tensor:
    """Draw lines of strength `ink` [n, 1, h, w] over `images` in near black."""
    return images + (-0.92 - images) * ink * strength
