"""Inert stand-ins for classes that checkpoints hold in addition to tensors.

torch's restricted unpickler calls only names on an allow-list. This module lists stand-ins under
the names of numpy's scalars and arrays and of pathlib's paths, so that a file never constructs the
real classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from pipeline.inert_numpy import NUMBERS, NUMPY_NAMES, InertArray, InertScalar


class InertPath:
    """A file path, stored as its parts."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __str__(self) -> str:
        return "/".join(str(part) for part in self.parts).replace("//", "/")


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
# pathlib moved its classes in Python 3.13. torch has `_codecs.encode` on its own list.
HARMLESS: dict[str, Callable[..., Any]] = {
    **{name: stand_in for name, stand_in in NUMPY_NAMES.items() if name != "_codecs.encode"},
    **{f"pathlib.{name}": InertPath for name in _PATHS},
    **{f"pathlib._local.{name}": InertPath for name in _PATHS},
}


def safe_names(more: Mapping[str, Callable[..., Any]]) -> list[Any]:
    """Return the argument of `torch.serialization.safe_globals`: classes, and named stand-ins.

    `more` adds stand-ins to those of `HARMLESS`.
    """
    stand_ins = {**HARMLESS, **more}
    return [argparse.Namespace, *((stand_in, name) for name, stand_in in stand_ins.items())]


def plain(value: Any) -> Any:
    """Return numpy scalars and arrays as Python numbers and tensors, and paths as text.

    Any other value is returned unchanged, and so is an array that is not numeric.
    """
    if isinstance(value, InertPath | PurePath):
        return str(value)
    try:
        if isinstance(value, InertScalar):
            return value.value()
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, InertArray):
            value = value.numbers(NUMBERS)
        if isinstance(value, np.ndarray):
            native = value.astype(value.dtype.newbyteorder("="), copy=True)
            return torch.from_numpy(native)
    except (TypeError, ValueError):
        return value
    return value
