"""Read and write `latents.npy` of the published scripts, a pickled dictionary, safely.

`numpy.save` of a dictionary writes a pickle, which can execute code when loaded. Here the names
that numpy's arrays need are replaced by inert records, all others are refused, and the values are
read from the records by their declared type and shape. Memory is limited to 4 times the file size
plus 64 kB.

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


# Codes can need more memory than the file: float16 becomes float32, and codes can be shared.
_GROWTH, _FREE_BYTES, _NODE_BYTES = 4, 1 << 16, 64
_MAX_DEPTH = 3  # a list of steps, an array of objects, an array of numbers


def _empty_dictionary() -> dict[Any, Any]:
    return {}


_ALLOWED_NAMES: dict[str, Callable[..., Any]] = {
    **NUMPY_NAMES,
    "collections.OrderedDict": _empty_dictionary,
}


class _Budget:
    """Remaining bytes of memory for the codes of a file."""

    def __init__(self, file_bytes: int) -> None:
        self._file_bytes, self._left = file_bytes, _GROWTH * file_bytes + _FREE_BYTES

    def take(self, count: int) -> None:
        """Subtract `count` bytes. Raises `InputError` when the limit is exceeded."""
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"its codes would take over {_GROWTH} times its {self._file_bytes} bytes: it "
                "repeats the same values"
            )


def read_latents(content: bytes, source: str) -> dict[str, Codes]:
    """Return the codes [steps, n_styles, 512] by name of a `latents.npy`, in the file's order.

    Also accepts one code [n_styles, 512] or an array of codes in place of the scripts' lists. Never
    executes code from the file. Raises `InputError` in one line that names `source`.
    """
    try:
        budget = _Budget(len(content))
        return {name: _codes(name, value, budget) for name, value in _unpickled(content).items()}
    except InputError as error:
        raise InputError(f"{source}: refused, {error}") from error
    except Exception as error:  # a damaged pickle can raise any type
        reason = str(error) or type(error).__name__
        raise InputError(f"{source}: not a latents.npy, or damaged ({reason})") from error


def latents_file(codes: Mapping[str, Codes]) -> bytes:
    """Return the bytes of a `latents.npy` with codes [steps, n_styles, 512] by name."""
    dictionary = {name: list(np.asarray(steps, np.float32)) for name, steps in codes.items()}
    sink = io.BytesIO()
    np.save(sink, cast(Any, dictionary))
    return sink.getvalue()


def _unpickled(content: bytes) -> dict[Any, Any]:
    """Return the dictionary of a numpy file of one object; its arrays are inert records."""
    file = io.BytesIO(content)
    shape, _, kind = read_header(file)
    if kind != np.dtype(object) or shape != ():
        raise InputError(f"it has an array {list(shape)} of {kind}, expected a dictionary")
    array = read_pickle(content[file.tell() :], _ALLOWED_NAMES, (InertArray, InertType))
    if not isinstance(array, InertArray):
        raise InputError(f"it has a {_type_name(array)}, expected a dictionary of codes")
    (dictionary,) = array.items()
    if not isinstance(dictionary, dict) or not dictionary:
        raise InputError(f"it has a {_type_name(dictionary)}, expected a dictionary of codes")
    return dictionary


def _codes(name: str, value: Any, budget: _Budget) -> Codes:
    stack = _floats(value, budget)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[2] != STYLE_DIM or 0 in stack.shape:
        raise InputError(
            f"'{name}' has shape {list(stack.shape)}, expected [steps, n, {STYLE_DIM}]"
        )
    if not np.isfinite(stack).all():
        raise InputError(f"'{name}' has NaN or infinity")
    return stack


def _floats(value: Any, budget: _Budget, depth: int = 0) -> Codes:
    """Convert a list of arrays, an array, or an array of arrays to float32."""
    budget.take(_NODE_BYTES)
    if isinstance(value, InertArray):
        if not value.kind.is_object:
            numbers = value.numbers()
            budget.take(numbers.size * np.dtype(np.float32).itemsize)
            return numbers.astype(np.float32)
        value = value.items()
    if not isinstance(value, list | tuple) or not value or depth == _MAX_DEPTH:
        raise InputError(f"it has a {_type_name(value)} in place of codes")
    return np.stack([_floats(step, budget, depth + 1) for step in value])


def _type_name(value: object) -> str:
    return "numpy array" if isinstance(value, InertArray) else type(value).__name__
