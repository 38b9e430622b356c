"""Puts the fitted generator and its encoder together into the embedded demo bundle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.models import Architecture, ModelCard, RestyleModel
from pipeline.models.compact import CompactEncoder
from pipeline.models.stylegan2 import Generator
from pipeline.training.generator import GeneratorPlan

SOURCE = (
    "a small StyleGAN2 fitted to (w, image) pairs that the generator inside the random-face "
    "2021.7.21.1 wheel rendered, and a compact ReStyle-pSp encoder trained for it"
)
LICENCE = (
    "research use only: the pairs come from a network (the wheel says Apache-2.0) that descends "
    "from NVIDIA's StyleGAN2-FFHQ, which is licensed for non-commercial use"
)


def assemble(
    plan: GeneratorPlan,
    generator: Generator,
    encoder: CompactEncoder,
    latent_avg: Tensor,  # [n_styles, 512]
    notes: dict[str, Any],
) -> RestyleModel:
    """The two networks as one model named `demo`; `notes` is plain JSON for its card."""
    size = generator.size
    architecture = Architecture(
        encoder_type="CompactEncoder",
        encoder_arguments={
            "n_styles": generator.n_styles,
            "input_size": size,
            "input_channels": 6,
            "width": encoder.stem.out_channels,
        },
        channels=plan.channels,
        input_size=(size, size),
    )
    card = ModelCard(name="demo", domain="faces", source=SOURCE, licence=LICENCE, notes=notes)
    model = RestyleModel(architecture, card)
    model.generator.load_state_dict(generator.state_dict())
    model.encoder.load_state_dict(encoder.state_dict())
    model.latent_avg.copy_(latent_avg)
    return model
