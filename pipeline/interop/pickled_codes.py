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
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.inert_numpy import NUMPY_NAMES, InertArray, InertType
from pipeline.inert_pickle import read_pickle
from pipeline.storage.readers.npy import read_header

STYLE_DIM = 512
Codes = NDArray[np.float32]


# Codes may take more memory than the file: float16 becomes float32, a code may be named twice.
_GROWTH, _FREE_BYTES, _NODE_BYTES = 4, 1 << 16, 64
_DEEPEST = 3  # a list of steps, an array of objects, an array of numbers


def _empty_dictionary() -> dict[Any, Any]:
    return {}


_STANDS_FOR: dict[str, Callable[..., Any]] = {
    **NUMPY_NAMES,
    "collections.OrderedDict": _empty_dictionary,
}


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
    array = read_pickle(content[file.tell() :], _STANDS_FOR, (InertArray, InertType))
    if not isinstance(array, InertArray):
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
    if isinstance(value, InertArray):
        if not value.kind.is_object:
            numbers = value.numbers()
            budget.take(numbers.size * np.dtype(np.float32).itemsize)
            return numbers.astype(np.float32)
        value = value.items()
    if not isinstance(value, list | tuple) or not value or depth == _DEEPEST:
        raise InputError(f"it holds a {_named(value)} where codes should be")
    return np.stack([_floats(step, budget, depth + 1) for step in value])


def _named(value: object) -> str:
    return "numpy array" if isinstance(value, InertArray) else type(value).__name__
