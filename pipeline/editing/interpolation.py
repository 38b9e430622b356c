"""Walk in a straight line from code to code in W+."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, RequestError

Code = NDArray[np.float32]  # [n_styles, 512]


def interpolate(start: Code, end: Code, count: int) -> NDArray[np.float32]:
    """Return `count` codes [count, n_styles, 512] at equal distances from `start` to `end`.

    The first and the last are `start` and `end` exactly. Raises `ConfigError` for fewer than two.
    """
    if count < 2:
        raise ConfigError(f"from one face to the next there are at least 2 pictures, got {count}")
    part = np.linspace(0, 1, count, dtype=np.float64)[:, None, None]
    return ((1 - part) * start + part * end).astype(np.float32)


def walk(codes: Iterable[Code], count: int, *, closed: bool = False) -> Iterator[Code]:
    """Yield the codes of a walk over `codes`: `count` from each to the next, both included.

    A code between two legs comes once: `k` codes give `(k - 1) * (count - 1) + 1`. A closed walk
    returns to the first code and leaves the repeated one out, so that it can be shown in a loop:
    `k * (count - 1)`. Memory holds two codes and one leg. Raises `RequestError` for fewer than two
    codes.
    """
    ends: tuple[Code, Code] | None = None  # the first code and the last one so far
    for start, end in itertools.pairwise(codes):
        ends = (ends[0] if ends else start, end)
        yield from interpolate(start, end, count)[:-1]
    if ends is None:
        raise RequestError("a walk needs at least two faces")
    first, last = ends
    if closed:
        yield from interpolate(last, first, count)[:-1]
    else:
        yield last


def walk_length(faces: int, count: int, *, closed: bool = False) -> int:
    """Return the number of codes that `walk` yields."""
    return faces * (count - 1) if closed else (faces - 1) * (count - 1) + 1
