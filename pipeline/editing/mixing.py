"""Mix styles: each row of a code from one of several faces (StyleGAN, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.editing.layers import parse_layers
from pipeline.errors import ConfigError


class MixSource(NamedTuple):
    """Face of a mix, and the rows of the code that it gives."""

    image_id: str
    rows: tuple[int, ...]
    text: str  # of the rows, as given


def parse_mix(texts: Sequence[str], n_styles: int) -> list[MixSource]:
    """Read sources such as `ID:0-3`, `ID:4-` (to the end), `ID:7` or `ID:0-1,8-`.

    Raises `ConfigError` unless each row of a code of `n_styles` rows is given by exactly one face.
    """
    sources = [_source(text, n_styles) for text in texts]
    givers: dict[int, list[str]] = {row: [] for row in range(n_styles)}
    for source in sources:
        for row in source.rows:
            givers[row].append(source.image_id)
    twice = [row for row, ids in givers.items() if len(ids) > 1]
    if twice:
        raise ConfigError(f"--mix: rows {_listed(twice)} are given by more than one face")
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
    image_id, _, layers = text.rpartition(":")
    if not (image_id and layers):
        raise ConfigError(f"--mix '{text}': give an image id and rows, such as ID:0-3 or ID:4-")
    return MixSource(image_id, tuple(parse_layers(layers, n_styles)), layers)


def _listed(rows: Sequence[int]) -> str:
    """Return row numbers as spans: 0-3, 7."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][-1] + 1:
            spans[-1][1:] = [row]
        else:
            spans.append([row])
    return ", ".join("-".join(map(str, span)) for span in spans)
