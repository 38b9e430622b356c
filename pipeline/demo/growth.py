"""Change the levels of a generator and the style rows of an encoder, keeping what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from pipeline.models.encoders import HEAD_CHANNELS, CompactEncoder
from pipeline.models.stylegan2 import Generator, ToRGB


@torch.no_grad()
def with_levels(generator: Generator, channels: Mapping[int, int]) -> Generator:
    """Return a generator of `channels` with the weights of the levels that both have.

    Finer levels begin untrained and add nothing to the image: at first it is the one of
    `generator`, upsampled. Raises `ValueError` where a shared level has another width.
    """
    changed = Generator(channels)
    shared = {
        name: value
        for name, value in generator.state_dict().items()
        if name in changed.state_dict()
    }
    if any(value.shape != changed.state_dict()[name].shape for name, value in shared.items()):
        raise ValueError(f"channels {dict(channels)} change the width of a level")
    changed.load_state_dict(shared, strict=False)
    for to_rgb in list(changed.to_rgbs)[len(generator.to_rgbs) :]:
        cast(ToRGB, to_rgb).conv.weight.zero_()
    return changed


@torch.no_grad()
def with_rows(encoder: CompactEncoder, n_styles: int) -> CompactEncoder:
    """Return `encoder` with its first `n_styles` rows; further rows repeat its last one."""
    rows = torch.arange(n_styles).clamp(max=encoder.heads.n_styles - 1)
    channels = (rows[:, None] * HEAD_CHANNELS + torch.arange(HEAD_CHANNELS)).flatten()
    weights = encoder.state_dict()
    for name in weights:
        if name in {"heads.matrix", "heads.bias"}:
            weights[name] = weights[name][rows]
        elif name.startswith("heads."):
            weights[name] = weights[name][channels]
    stem = encoder.stem
    changed = CompactEncoder(n_styles, encoder.input_size, stem.in_channels, stem.out_channels)
    changed.load_state_dict(weights)
    return changed
