"""`latents.npy` of the published scripts: a pickled dictionary, read without running it.

`numpy.save` of a dictionary writes a pickle, and a pickle is a program. Here the few names that
numpy's own arrays need stand for inert records of what was stored, every other name is refused,
and the numbers are taken out of the records by their declared type and shape.

The dictionary is {file name: [code of step 1, code of step 2, ...]}, each code float32
[n_styles, 512].
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

STYLE_DIM = 512
Codes = NDArray[np.float32]


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
            raise ValueError(f"an array of type {self.kind!r}, expected floats")
        return np.dtype(self.kind).newbyteorder(cast(Any, self.order))


class _Array:
    """A numpy array as the pickle tells it: shape, type, and bytes or a list."""

    shape: tuple[int, ...] = ()
    raw: Any = b""
    kind = _Type("f4")
    is_fortran = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.is_fortran, self.raw = state

    def items(self) -> list[Any]:
        """What an array of objects holds."""
        if not isinstance(self.raw, list) or math.prod(self.shape) != len(self.raw):
            raise ValueError("an array of objects without its objects")
        return self.raw

    def numbers(self) -> NDArray[Any]:
        """The numbers of an array of floats."""
        kind = self.kind.numbers()
        if math.prod(self.shape) * kind.itemsize != len(self.raw):
            raise ValueError(f"{len(self.raw)} bytes for an array {list(self.shape)}")
        flat: NDArray[Any] = np.frombuffer(self.raw, kind)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


def _reconstructed(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: Any, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", bytes(raw)))
    return array


def _latin1(text: str, codec: str) -> bytes:
    """Bytes as protocol 2 writes them, as text."""
    if codec != "latin1":
        raise ValueError(f"bytes in the codec {codec!r}")
    return text.encode("latin1")


_STANDS_FOR: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "_codecs.encode": _latin1,
    "collections.OrderedDict": dict,
}
for _core in ("core", "_core"):  # numpy 1 and 2
    _STANDS_FOR[f"numpy.{_core}.multiarray._reconstruct"] = _reconstructed
    _STANDS_FOR[f"numpy.{_core}.numeric._frombuffer"] = _from_buffer


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The record that stands for a name; no import, whatever the name is."""
        known = _STANDS_FOR.get(f"{module}.{name}")
        if known is None:
            raise InputError(f"it names {module}.{name}, which a dictionary of codes has no use of")
        return known


def read_latents(content: bytes, source: str) -> dict[str, Codes]:
    """The codes [steps, n_styles, 512] of every name in a `latents.npy`, in the file's order.

    Accepts a code [n_styles, 512] or a stack of them where the scripts write a list. Runs nothing
    of what the file says. Raises `InputError` in one line, naming `source`.
    """
    try:
        return {_name(name): _codes(name, value) for name, value in _unpickled(content).items()}
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
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise InputError(f"its format version {version} is not one of numpy.save's")
    shape, _, kind = header(file)
    if kind != np.dtype(object) or shape != ():
        raise InputError(f"it holds an array {list(shape)} of {kind}, expected a dictionary")
    array = _InertUnpickler(file).load()
    if not isinstance(array, _Array):
        raise InputError(f"it holds a {_named(array)}, expected a dictionary of codes")
    (dictionary,) = array.items()
    if not isinstance(dictionary, dict) or not dictionary:
        raise InputError(f"it holds a {_named(dictionary)}, expected a dictionary of codes")
    return dictionary


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise InputError(f"it has the key {name!r}, expected a file's name")
    return name


def _codes(name: object, value: Any) -> Codes:
    stack = _floats(value)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[2] != STYLE_DIM or 0 in stack.shape:
        raise InputError(
            f"'{name}' has shape {list(stack.shape)}, expected [steps, n, {STYLE_DIM}]"
        )
    if not np.isfinite(stack).all():
        raise InputError(f"'{name}' holds numbers that are not finite")
    return stack


def _floats(value: Any) -> Codes:
    """A list of arrays, an array, or an array of arrays, as float32."""
    if isinstance(value, _Array):
        if not value.kind.is_object:
            return value.numbers().astype(np.float32)
        value = value.items()
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"it holds a {_named(value)} where codes should be")
    return np.stack([_floats(step) for step in value])


def _named(value: object) -> str:
    return "numpy array" if isinstance(value, _Array) else type(value).__name__
