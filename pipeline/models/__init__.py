"""Generator, encoders, official checkpoints and model bundles."""

from pipeline.models.bundle import is_bundle, load_model, save_bundle
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.encoders import ENCODER_TYPES, OFFICIAL_TYPES
from pipeline.models.files import bundle_names
from pipeline.models.presets import (
    PRESETS,
    Preset,
    Treatment,
    preset_for,
    preset_of,
    treatment_for,
)
from pipeline.models.restyle import Architecture, ModelCard, RestyleModel
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
    "is_bundle",
    "load_checkpoint",
    "load_model",
    "preset_for",
    "preset_of",
    "save_bundle",
    "treatment_for",
]
