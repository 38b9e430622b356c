"""Pairs for fitting a small generator."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.latent_pairs import LatentPairs


@pytest.fixture
def colours() -> LatentPairs:
    """Return 24 pairs of a code and a flat 32 px image in a colour computed from it."""
    torch.manual_seed(0)
    w = torch.randn(24, 512)
    colour = (127 + 60 * w[:, :3]).clamp(0, 255).byte()
    return LatentPairs(w, colour[:, :, None, None].expand(-1, -1, 32, 32).contiguous())
