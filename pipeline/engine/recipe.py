"""How every part of a table is made: settings, model and metrics as the table records them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipeline.alignment import AlignmentSettings
from pipeline.config import JobConfig
from pipeline.engine.cluster import in_cluster
from pipeline.engine.invert import InvertSettings
from pipeline.errors import ConfigError
from pipeline.metrics import Meter
from pipeline.models import RestyleModel, load_model
from pipeline.table import Columns, Description

# Raised by whoever changes what the same weights and settings compute.
NUMERICS_VERSION = 1
FACE_DOMAINS = ("faces", "toonify", "unknown")
# These guard the aligner's process and change no row.
_NO_RESULT = {"row_timeout_s", "memory_limit_mib"}


@dataclass(frozen=True)
class Recipe:
    """How every part of the table is made; small, and the same in every process."""

    alignment: AlignmentSettings
    inversion: InvertSettings
    description: Description

    @property
    def columns(self) -> Columns:
        """The table's columns."""
        return self.description.columns


def _alignment(config: JobConfig, model: RestyleModel) -> AlignmentSettings:
    if not config.prealigned and model.domain not in FACE_DOMAINS:
        raise ConfigError(
            f"the model '{model.name}' inverts images of {model.domain}, which have no faces to "
            "align: add --prealigned"
        )
    return AlignmentSettings(
        faces=config.faces,
        prealigned=config.prealigned,
        min_face_px=config.min_face,
        output_size=model.input_size,
        max_pixels=config.max_pixels,
        row_timeout_s=config.image_timeout,
    )


def _public_config(config: JobConfig) -> dict[str, Any]:
    return config.model_dump(exclude_none=True)


def make_recipe(config: JobConfig) -> Recipe:
    """Load the model and the metric networks once to learn what the table is to say of them."""
    if config.device == "cuda" and not in_cluster() and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU on this machine")
    model = load_model(config.model)
    alignment = _alignment(config, model)
    meter = Meter("cpu", config.identity, config.best_step_by)
    if model.input_channels == 3 and config.step_count > 1:
        raise ConfigError(f"the model '{model.name}' works in one pass: use --steps 1")
    settings = {
        "numerics": NUMERICS_VERSION,
        "model": model.fingerprint,
        "steps": config.step_count,
        "alignment": {k: v for k, v in asdict(alignment).items() if k not in _NO_RESULT},
        # The definition has the weights' hash, whatever the file is called.
        "identity": meter.definitions["id_similarity"],
        "best_step_by": config.best_step_by,
    }
    columns = Columns(
        n_styles=model.n_styles,
        w_plus_dtype=config.latent_dtype,
        all_steps=config.keep_steps,
        aligned_jpeg=config.keep_crops,
        reconstruction_jpeg=config.keep_reconstructions,
    )
    description = Description(
        columns=columns,
        settings=settings,
        layout=config.layout(),
        config=_public_config(config),
        model=model.metadata,
        metrics=meter.definitions,
    )
    inversion = InvertSettings(
        model=config.model,
        steps=config.step_count,
        identity=config.identity,
        best_step_by=config.best_step_by,
        device=config.device,
        largest_code=float(np.finfo(config.latent_dtype).max),
        batch_size=config.batch_size,
        keep_steps=config.keep_steps,
        keep_crops=config.keep_crops,
        keep_reconstructions=config.keep_reconstructions,
    )
    return Recipe(alignment, inversion, description)
