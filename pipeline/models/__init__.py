"""Generator, encoders, official checkpoints and model bundles.

What needs PyTorch is imported at first use: checking whether a model exists does not load it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.models.domains import PRESETS, Treatment, preset_of, treatment_for
from pipeline.models.files import bundle_names

if TYPE_CHECKING:
    from pipeline.models.bundle import load_model, save_bundle
    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.models.encoders import ENCODER_TYPES
    from pipeline.models.model import Architecture, ModelCard, RestyleModel

__all__ = [
    "ENCODER_TYPES",
    "PRESETS",
    "Architecture",
    "ModelCard",
    "RestyleModel",
    "Treatment",
    "bundle_names",
    "load_checkpoint",
    "load_model",
    "preset_of",
    "save_bundle",
    "treatment_for",
]

_MODULES = {
    "ENCODER_TYPES": "encoders",
    "Architecture": "model",
    "ModelCard": "model",
    "RestyleModel": "model",
    "load_checkpoint": "checkpoint",
    "load_model": "bundle",
    "save_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
