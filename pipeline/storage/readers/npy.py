"""Read untrusted numpy files: never a pickle, and never more bytes than the file has."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ArrayHeader(NamedTuple):
    """Header of a numpy file: shape, memory order and type."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Read the header of a `.npy` file; the position of `file` is then at the array's data.

    Raises `ValueError` if the header is invalid.
    """
    try:
        version = np.lib.format.read_magic(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about headers that Python 2 wrote
            return ArrayHeader(*_HEADERS[version](file))
    except KeyError as error:
        raise ValueError(f"format version {error} is not one of numpy.save's") from error
    except ValueError:
        raise
    except Exception as error:  # the header is a Python literal, whose parser raises many types
        raise ValueError(f"no header of numpy ({type(error).__name__})") from error


def read_array(content: bytes) -> NDArray[Any]:
    """Return the array in the `.npy` file `content`, read-only and sharing its memory.

    Raises `ValueError` if the header claims another number of bytes than the file has, and for an
    array of objects.
    """
    file = io.BytesIO(content)
    header = read_header(file)
    if header.dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    start, claimed = file.tell(), math.prod(header.shape) * header.dtype.itemsize
    if claimed != len(content) - start:
        raise ValueError(
            f"{len(content) - start} bytes for an array {list(header.shape)} of {header.dtype}"
        )
    flat: NDArray[Any] = np.frombuffer(content, header.dtype, offset=start)
    return flat.reshape(header.shape, order="F" if header.is_fortran else "C")
