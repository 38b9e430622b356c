"""Untrained model for tests: real arithmetic in milliseconds, meaningless faces."""

from __future__ import annotations

import torch

from pipeline.models import Architecture, ModelCard, RestyleModel, save_bundle


def write_tiny_bundle(folder: str, size: int = 64) -> str:
    """Save a seeded model of `size` px with an encoder of 64 px as a bundle; return its folder."""
    channels = {4 << level: 8 for level in range(size.bit_length() - 2)}
    architecture = Architecture(
        encoder_type="CompactEncoder",
        encoder_arguments={
            "n_styles": 2 * len(channels),
            "input_size": 64,
            "input_channels": 6,
            "width": 8,
        },
        channels=channels,
        input_size=(64, 64),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RestyleModel(architecture, ModelCard(name="tiny", domain="faces"))
        model.latent_avg.copy_(0.2 * torch.randn(512))
    save_bundle(model, folder)
    return folder
