"""Inert records for numpy's arrays, dtypes and scalars, for pickle readers that execute nothing.

A pickle names the numpy functions that would build an array. `NUMPY_NAMES` maps each of these names
to a record that only stores its arguments; `numbers` and `value` convert a record to plain data
after checking its dtype and shape against its bytes.
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
    """Record of a numpy dtype: kind and byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.kind in ("O", "O8")

    def dtype(self, allowed: tuple[str, ...] = FLOATS) -> np.dtype[Any]:
        """Return the dtype if its kind is in `allowed`; raise `ValueError` otherwise."""
        if self.kind not in allowed or self.order not in ("<", ">", "=", "|"):
            what = "floats" if allowed == FLOATS else "numbers"
            raise ValueError(f"an array of type {self.kind!r:.20}, expected {what}")
        return np.dtype(self.kind).newbyteorder(cast(Any, self.order))


class Latin1:
    """Bytes that pickle protocol 2 stores as text; converted on use."""

    def __init__(self, text: str, codec: str) -> None:
        if not isinstance(text, str) or codec != "latin1":
            raise ValueError("bytes in a codec other than latin1")
        self.text = text

    def __len__(self) -> int:
        return len(self.text)


def bytes_of(raw: object) -> bytes | bytearray:
    """Return the bytes of a pickle of any protocol; raise `TypeError` for anything else."""
    if isinstance(raw, Latin1):
        return raw.text.encode("latin1")
    if isinstance(raw, bytes | bytearray):
        return raw
    raise TypeError(f"a {type(raw).__name__} instead of bytes")


class InertArray:
    """Record of a numpy array: shape, dtype, and bytes or a list."""

    def __init__(self, *_: object) -> None:
        self.__setstate__((1, (), InertType("f4"), False, b""))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.is_fortran, self.raw = state
        if not isinstance(self.kind, InertType):
            raise TypeError("an array without a dtype")
        if type(self.shape) is not tuple or not all(map(_is_length, self.shape)):
            raise TypeError("an array without a shape")

    def items(self) -> list[Any]:
        """Return the elements of an array of objects."""
        if not isinstance(self.raw, list) or math.prod(self.shape) != len(self.raw):
            raise ValueError("an array of objects without its objects")
        return self.raw

    def numbers(self, allowed: tuple[str, ...] = FLOATS) -> NDArray[Any]:
        """Return the numbers of an array whose dtype is in `allowed`."""
        kind = self.kind.dtype(allowed)
        if not isinstance(self.raw, bytes | bytearray | Latin1):
            raise TypeError(f"a {type(self.raw).__name__} in place of an array's bytes")
        if math.prod(self.shape) * kind.itemsize != len(self.raw):
            raise ValueError(f"{len(self.raw)} bytes for an array {list(self.shape)}")
        flat: NDArray[Any] = np.frombuffer(bytes_of(self.raw), kind)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class InertScalar:
    """Record of a numpy scalar: dtype and bytes."""

    def __init__(self, kind: object = None, raw: object = b"") -> None:
        if not isinstance(kind, InertType):
            raise TypeError("a number without a dtype")
        self.kind, self.raw = kind, raw

    def value(self) -> bool | int | float:
        """Return it as a Python number; raise `ValueError` or `TypeError` if it is not one."""
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
