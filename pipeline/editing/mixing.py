"""Mix styles: each row of a code from one of several faces (StyleGAN, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

_SPAN = re.compile(r"(\d+)(-(\d*))?", re.ASCII)


class MixSource(NamedTuple):
    """Face of a mix, and the rows of the code that it gives."""

    image_id: str
    rows: tuple[int, ...]
    text: str  # of the rows, as given


def parse_mix(texts: Sequence[str], n_styles: int) -> list[MixSource]:
    """Read sources such as `ID:0-3`, `ID:4-` (to the end), `ID:7` or `ID:0-1,8-`.

    Raises `ConfigError` unless each row of a code of `n_styles` rows is given exactly once.
    """
    sources = [_source(text, n_styles) for text in texts]
    givers: dict[int, list[str]] = {row: [] for row in range(n_styles)}
    for source in sources:
        for row in source.rows:
            givers[row].append(source.image_id)
    twice = [row for row, ids in givers.items() if len(ids) > 1]
    if twice:
        raise ConfigError(f"--mix: rows {_listed(twice)} are given more than once")
    missing = [row for row, ids in givers.items() if not ids]
    if missing:
        raise ConfigError(
            f"--mix: rows {_listed(missing)} are given by no face; the model's codes have rows 0 "
            f"to {n_styles - 1}"
        )
    return sources


def mix(codes: NDArray[np.float32], sources: Sequence[MixSource]) -> NDArray[np.float32]:
    """Return the code [n_styles, 512] with the rows of each source from its code.

    `codes` [n, n_styles, 512] are those of `sources`, in their order.
    """
    mixed = np.zeros(codes.shape[1:], np.float32)
    for code, source in zip(codes, sources, strict=True):
        mixed[list(source.rows)] = code[list(source.rows)]
    return mixed


def _source(text: str, n_styles: int) -> MixSource:
    image_id, colon, spans = text.rpartition(":")
    if not (colon and image_id):
        raise ConfigError(f"--mix '{text}': give an image id and rows, such as ID:0-3 or ID:4-")
    rows = [row for span in spans.split(",") for row in _rows(span, text, n_styles)]
    return MixSource(image_id, tuple(rows), spans)


def _rows(span: str, text: str, n_styles: int) -> range:
    match = _SPAN.fullmatch(span.strip())
    if not match:
        raise ConfigError(f"--mix '{text}': '{span}' is not rows; give them as 0-3, 4- or 7")
    first = int(match[1])
    last = first if match[2] is None else int(match[3]) if match[3] else n_styles - 1
    if not first <= last < n_styles:
        raise ConfigError(
            f"--mix '{text}': '{span}' is not within the rows of the model's codes, 0 to "
            f"{n_styles - 1}"
        )
    return range(first, last + 1)


def _listed(rows: Sequence[int]) -> str:
    """Return row numbers as spans: 0-3, 7."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][-1] + 1:
            spans[-1][1:] = [row]
        else:
            spans.append([row])
    return ", ".join("-".join(map(str, span)) for span in spans)
