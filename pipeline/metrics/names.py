"""What an identity network can be called; asked before anything of it is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.files import check_model_file

WORDS = ("dlib", "none")


def refuse_word(name: str) -> None:
    """Raise `ModelError` for what is no file and does not look like one: a mistyped word."""
    if not re.search(r"[./\\]", name) and not Path(name).exists():
        raise ModelError(
            f"no identity network is called '{name}': expected dlib, none, or a weight file "
            "(.pth, .pt, .safetensors)"
        )


def check_identity(name: str) -> None:
    """Raise `ModelError` where `name` is neither a word of ours nor a weight file that is there."""
    if name not in WORDS:
        refuse_word(name)
        check_model_file(name, "identity weights")
