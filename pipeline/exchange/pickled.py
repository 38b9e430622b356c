"""`latents.npy` of the published scripts: a pickled dictionary, read without running it.

`numpy.save` of a dictionary writes a pickle, and a pickle is a program. Here the few names that
numpy's own arrays need stand for inert records of what was stored, every other name is refused,
and the numbers are taken out of the records by their declared type and shape. What a file makes
grows with its bytes: 4 times their number at most, and 64 kB.

The dictionary is {file name: [code of step 1, code of step 2, ...]}, each code float32
[n_styles, 512].
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.exchange.inert_pickle import read_pickle
from pipeline.storage.readers.npy import read_header

STYLE_DIM = 512
Codes = NDArray[np.float32]


# Codes may take more memory than the file: float16 becomes float32, a code may be named twice.
_GROWTH, _FREE_BYTES, _NODE_BYTES = 4, 1 << 16, 64
_DEEPEST = 3  # a list of steps, an array of objects, an array of numbers


class _Type:
    """A numpy dtype as the pickle tells it: a kind, then a byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.kind in ("O", "O8")

    def numbers(self) -> np.dtype[Any]:
        """The float type; `ValueError` for anything else."""
        if self.kind not in ("f2", "f4", "f8") or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of type {self.kind!r:.20}, expected floats")
        return np.dtype(self.kind).newbyteorder(cast(Any, self.order))


class _Latin1:
    """Bytes as protocol 2 writes them, as text; made once, where they are used."""

    def __init__(self, text: str, codec: str) -> None:
        if not isinstance(text, str) or codec != "latin1":
            raise ValueError("bytes in another codec than latin1")
        self.text = text

    def __len__(self) -> int:
        return len(self.text)


class _Array:
    """A numpy array as the pickle tells it: shape, type, and bytes or a list."""

    def __init__(self, *_: object) -> None:
        self.__setstate__((1, (), _Type("f4"), False, b""))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.is_fortran, self.raw = state
        if not isinstance(self.kind, _Type):
            raise TypeError("an array without a type")
        if type(self.shape) is not tuple or not all(map(_is_length, self.shape)):
            raise TypeError("an array without a shape")

    def items(self) -> list[Any]:
        """What an array of objects holds."""
        if not isinstance(self.raw, list) or math.prod(self.shape) != len(self.raw):
            raise ValueError("an array of objects without its objects")
        return self.raw

    def numbers(self) -> NDArray[Any]:
        """The numbers of an array of floats."""
        kind = self.kind.numbers()
        if not isinstance(self.raw, bytes | bytearray | _Latin1):
            raise TypeError(f"a {type(self.raw).__name__} in place of an array's bytes")
        if math.prod(self.shape) * kind.itemsize != len(self.raw):
            raise ValueError(f"{len(self.raw)} bytes for an array {list(self.shape)}")
        raw = self.raw.text.encode("latin1") if isinstance(self.raw, _Latin1) else self.raw
        flat: NDArray[Any] = np.frombuffer(raw, kind)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


def _is_length(length: object) -> bool:
    return isinstance(length, int) and length >= 0


def _from_buffer(raw: Any, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _empty_dictionary() -> dict[Any, Any]:
    return {}


_STANDS_FOR: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "_codecs.encode": _Latin1,
    "collections.OrderedDict": _empty_dictionary,
}
for _core in ("core", "_core"):  # numpy 1 and 2
    _STANDS_FOR[f"numpy.{_core}.multiarray._reconstruct"] = _Array
    _STANDS_FOR[f"numpy.{_core}.numeric._frombuffer"] = _from_buffer


class _Budget:
    """The bytes that a file's codes may still take in memory."""

    def __init__(self, file_bytes: int) -> None:
        self._file_bytes, self._left = file_bytes, _GROWTH * file_bytes + _FREE_BYTES

    def take(self, count: int) -> None:
        """Raise `InputError` where there is not so much left."""
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"its codes would take over {_GROWTH} times its {self._file_bytes} bytes: it names "
                "the same numbers again and again"
            )


def read_latents(content: bytes, source: str) -> dict[str, Codes]:
    """The codes [steps, n_styles, 512] of every name in a `latents.npy`, in the file's order.

    Accepts a code [n_styles, 512] or a stack of them where the scripts write a list. Runs nothing
    of what the file says. Raises `InputError` in one line, naming `source`.
    """
    try:
        budget = _Budget(len(content))
        return {name: _codes(name, value, budget) for name, value in _unpickled(content).items()}
    except InputError as error:
        raise InputError(f"{source}: refused, {error}") from error
    except Exception as error:  # a damaged pickle raises any type there is
        reason = str(error) or type(error).__name__
        raise InputError(f"{source}: no latents.npy, or damaged ({reason})") from error


def latents_file(codes: Mapping[str, Codes]) -> bytes:
    """A `latents.npy` of codes [steps, n_styles, 512] by name, as the scripts write it."""
    dictionary = {name: list(np.asarray(steps, np.float32)) for name, steps in codes.items()}
    sink = io.BytesIO()
    np.save(sink, cast(Any, dictionary))
    return sink.getvalue()


def _unpickled(content: bytes) -> dict[Any, Any]:
    """The dictionary in a numpy file of one object; arrays in it are records."""
    file = io.BytesIO(content)
    shape, _, kind = read_header(file)
    if kind != np.dtype(object) or shape != ():
        raise InputError(f"it holds an array {list(shape)} of {kind}, expected a dictionary")
    array = read_pickle(content[file.tell() :], _STANDS_FOR, (_Array, _Type))
    if not isinstance(array, _Array):
        raise InputError(f"it holds a {_named(array)}, expected a dictionary of codes")
    (dictionary,) = array.items()
    if not isinstance(dictionary, dict) or not dictionary:
        raise InputError(f"it holds a {_named(dictionary)}, expected a dictionary of codes")
    return dictionary


def _codes(name: str, value: Any, budget: _Budget) -> Codes:
    stack = _floats(value, budget)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[2] != STYLE_DIM or 0 in stack.shape:
        raise InputError(
            f"'{name}' has shape {list(stack.shape)}, expected [steps, n, {STYLE_DIM}]"
        )
    if not np.isfinite(stack).all():
        raise InputError(f"'{name}' holds numbers that are not finite")
    return stack


def _floats(value: Any, budget: _Budget, depth: int = 0) -> Codes:
    """A list of arrays, an array, or an array of arrays, as float32."""
    budget.take(_NODE_BYTES)
    if isinstance(value, _Array):
        if not value.kind.is_object:
            numbers = value.numbers()
            budget.take(numbers.size * np.dtype(np.float32).itemsize)
            return numbers.astype(np.float32)
        value = value.items()
    if not isinstance(value, list | tuple) or not value or depth == _DEEPEST:
        raise InputError(f"it holds a {_named(value)} where codes should be")
    return np.stack([_floats(step, budget, depth + 1) for step in value])


def _named(value: object) -> str:
    return "numpy array" if isinstance(value, _Array) else type(value).__name__
