"""What stands for classes that checkpoints hold beside tensors: records of data, never run.

torch's restricted unpickler calls nothing but names on a list. The list gets stand-ins under the
names of numpy's numbers and arrays and of pathlib's paths, so that the classes themselves are
never built from a file's word.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.inert_numpy import NUMBERS, NUMPY_NAMES, InertArray, InertScalar


class InertPath:
    """A file's path as its parts."""

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
    """Return what `torch.serialization.safe_globals` takes: classes, and stand-ins with names.

    `more` has stand-ins beside those of `HARMLESS`.
    """
    known = {**HARMLESS, **more}
    return [argparse.Namespace, *((stand_in, name) for name, stand_in in known.items())]


def plain(value: Any) -> Any:
    """Return numpy's numbers and arrays, and paths, as Python's numbers, tensors and text.

    Everything else comes back as it is, and so does an array that holds no numbers.
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
            return _tensor(value)
    except (TypeError, ValueError):
        return value
    return value


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(native)
