"""Check the name of an identity network before it is loaded; imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.files import check_model_file

WORDS = ("dlib", "none")


def check_is_file_name(name: str) -> None:
    """Raise `ModelError` if `name` is not a file and does not look like one: a mistyped word."""
    if not re.search(r"[./\\]", name) and not Path(name).exists():
        raise ModelError(
            f"no identity network is called '{name}': expected dlib, none, or a weight file "
            "(.pth, .pt, .safetensors)"
        )


def check_identity(name: str) -> None:
    """Raise `ModelError` if `name` is not `dlib`, `none` or an existing weight file."""
    if name not in WORDS:
        check_is_file_name(name)
        check_model_file(name, "identity weights")
