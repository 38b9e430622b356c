"""Generator, encoders, official checkpoints and model bundles.

Names are imported at first use, so that checking whether a model exists does not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.models.bundle import load_model, save_bundle
    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.models.domains import (
        PRESETS,
        Preset,
        Treatment,
        preset_of,
        treatment_for,
    )
    from pipeline.models.encoders import ENCODER_TYPES, OFFICIAL_TYPES
    from pipeline.models.files import bundle_names, check_model, is_bundle
    from pipeline.models.model import Architecture, ModelCard, RestyleModel
    from pipeline.models.stylegan2 import Generator

__all__ = [
    "ENCODER_TYPES",
    "OFFICIAL_TYPES",
    "PRESETS",
    "Architecture",
    "Generator",
    "ModelCard",
    "Preset",
    "RestyleModel",
    "Treatment",
    "bundle_names",
    "check_model",
    "is_bundle",
    "load_checkpoint",
    "load_model",
    "preset_of",
    "save_bundle",
    "treatment_for",
]

_HOMES = {
    "bundle": ("load_model", "save_bundle"),
    "checkpoint": ("load_checkpoint",),
    "encoders": ("ENCODER_TYPES", "OFFICIAL_TYPES"),
    "files": ("bundle_names", "check_model", "is_bundle"),
    "domains": ("PRESETS", "Preset", "Treatment", "preset_of", "treatment_for"),
    "model": ("Architecture", "ModelCard", "RestyleModel"),
    "stylegan2": ("Generator",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
