"""Numpy's arrays, types and numbers as inert records, for readers of pickles that run nothing.

A pickle names the functions of numpy that would build an array. `NUMPY_NAMES` gives for each of
these names a record that only keeps what it is told; `numbers` and `value` then make plain data of
it, after its type and its shape are checked against its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

FLOATS = ("f2", "f4", "f8")
NUMBERS = (*FLOATS, *("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))


class InertType:
    """A numpy dtype as the pickle tells it: a kind, then a byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.kind in ("O", "O8")

    def dtype(self, known: tuple[str, ...] = FLOATS) -> np.dtype[Any]:
        """Return the type if it is one of `known`; raise `ValueError` for anything else."""
        if self.kind not in known or self.order not in ("<", ">", "=", "|"):
            what = "floats" if known == FLOATS else "numbers"
            raise ValueError(f"an array of type {self.kind!r:.20}, expected {what}")
        return np.dtype(self.kind).newbyteorder(cast(Any, self.order))


class Latin1:
    """Bytes as protocol 2 writes them, as text; made once, where they are used."""

    def __init__(self, text: str, codec: str) -> None:
        if not isinstance(text, str) or codec != "latin1":
            raise ValueError("bytes in another codec than latin1")
        self.text = text

    def __len__(self) -> int:
        return len(self.text)


def bytes_of(raw: object) -> bytes | bytearray:
    """Return the bytes of a pickle of any protocol; raise `TypeError` for something else."""
    if isinstance(raw, Latin1):
        return raw.text.encode("latin1")
    if isinstance(raw, bytes | bytearray):
        return raw
    raise TypeError(f"a {type(raw).__name__} in place of bytes")


class InertArray:
    """A numpy array as the pickle tells it: shape, type, and bytes or a list."""

    def __init__(self, *_: object) -> None:
        self.__setstate__((1, (), InertType("f4"), False, b""))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.is_fortran, self.raw = state
        if not isinstance(self.kind, InertType):
            raise TypeError("an array without a type")
        if type(self.shape) is not tuple or not all(map(_is_length, self.shape)):
            raise TypeError("an array without a shape")

    def items(self) -> list[Any]:
        """Return what an array of objects holds."""
        if not isinstance(self.raw, list) or math.prod(self.shape) != len(self.raw):
            raise ValueError("an array of objects without its objects")
        return self.raw

    def numbers(self, known: tuple[str, ...] = FLOATS) -> NDArray[Any]:
        """Return the numbers of an array of one of the types `known`."""
        kind = self.kind.dtype(known)
        if not isinstance(self.raw, bytes | bytearray | Latin1):
            raise TypeError(f"a {type(self.raw).__name__} in place of an array's bytes")
        if math.prod(self.shape) * kind.itemsize != len(self.raw):
            raise ValueError(f"{len(self.raw)} bytes for an array {list(self.shape)}")
        flat: NDArray[Any] = np.frombuffer(bytes_of(self.raw), kind)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class InertScalar:
    """A number of numpy's own types as the pickle tells it: its type and its bytes."""

    def __init__(self, kind: object = None, raw: object = b"") -> None:
        if not isinstance(kind, InertType):
            raise TypeError("a number without a type")
        self.kind, self.raw = kind, raw

    def value(self) -> bool | int | float:
        """Return the number as Python's own; raise `ValueError` or `TypeError` if it is none."""
        kind, raw = self.kind.dtype(NUMBERS), bytes_of(self.raw)
        if len(raw) != kind.itemsize:
            raise ValueError(f"{len(raw)} bytes for one number")
        number: bool | int | float = np.frombuffer(raw, kind)[0].item()
        return number


def _is_length(length: object) -> bool:
    return isinstance(length, int) and length >= 0


def _from_buffer(raw: Any, kind: InertType, shape: tuple[int, ...], order: str) -> InertArray:
    array = InertArray()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


NUMPY_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": InertArray,
    "numpy.dtype": InertType,
    "_codecs.encode": Latin1,
}
for _core in ("core", "_core"):  # numpy 1 and 2
    NUMPY_NAMES[f"numpy.{_core}.multiarray._reconstruct"] = InertArray
    NUMPY_NAMES[f"numpy.{_core}.multiarray.scalar"] = InertScalar
    NUMPY_NAMES[f"numpy.{_core}.numeric._frombuffer"] = _from_buffer
