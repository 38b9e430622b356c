"""Edit codes: `code + strength * direction`, for one or more directions at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.editing.directions import Direction, Floats
from pipeline.editing.layers import parse_layers
from pipeline.editing.w_space import WSpace
from pipeline.errors import ConfigError, ShapeError
from pipeline.table.schema import STYLE_DIM

_MAX_SETTINGS = 64
_MAX_STRENGTH = 1e6


@dataclass(frozen=True)
class Edits:
    """Directions as a model takes them, and the settings: one strength per direction each.

    `offsets` is float32 [m, n_styles, 512], zero in the rows that an edit leaves alone; `settings`
    has a tuple of m strengths for each edited version of a code.
    """

    names: tuple[str, ...]
    offsets: Floats
    settings: tuple[tuple[float, ...], ...]
    layers: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def apply(self, codes: Floats) -> Floats:
        """Return every setting of codes [n, n_styles, 512] as float32 [n, settings, n_styles, 512].

        A setting of zeros gives the code itself.
        """
        if codes.shape[1:] != self.offsets.shape[1:]:
            raise ShapeError(
                f"codes have shape {list(codes.shape)}, but the directions are for "
                f"[n, {self.offsets.shape[1]}, {STYLE_DIM}]"
            )
        steps = np.stack([self._step(setting) for setting in self.settings])
        return codes[:, None] + steps[None]

    def apply_one(self, codes: Floats, strengths: Sequence[float]) -> Floats:
        """Return codes [n, n_styles, 512] edited by one strength per direction, of any value."""
        return codes + self._step(strengths)[None]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return what determines the edited codes, as plain JSON values."""
        return [
            {
                "name": name,
                "sha256": hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest(),
                "strengths": [setting[index] for setting in self.settings],
                "layers": list(layers),
            }
            for index, (name, rows, layers) in enumerate(
                zip(self.names, self.offsets, self.layers, strict=True)
            )
        ]

    def _step(self, strengths: Sequence[float]) -> Floats:
        step = np.zeros(self.offsets.shape[1:], np.float32)
        for strength, offset in zip(strengths, self.offsets, strict=True):
            step += np.float32(strength) * offset
        return step


def edits_of(
    directions: Sequence[Direction],
    strengths: Sequence[Sequence[float]],
    layers: Sequence[str],
    model: WSpace,
    n_styles: int,
) -> Edits:
    """Return the edits of a model's codes by `directions`.

    `strengths` has a list per direction, or one list for all. Lists of the same length are taken
    together: the first setting has the first strength of each. A list of one strength goes with
    every setting. `layers` are texts of `parse_layers`, one per direction, one for all, or none.
    Raises `ConfigError` where these do not fit each other, the model, or a direction.
    """
    count = len(directions)
    if not count:
        raise ConfigError("an edit needs a direction: --direction NAME or FILE")
    lists = _one_each(strengths, count, "--strength")
    settings = tuple(zip(*_equally_long(lists), strict=True))
    if len(set(settings)) < len(settings):
        raise ConfigError("--strength: two of the settings are the same; give each once")
    notes = [direction.check_model(model) for direction in directions]
    offsets = np.zeros((count, n_styles, STYLE_DIM), np.float32)
    chosen = []
    for index, (direction, text) in enumerate(
        zip(directions, _one_each(layers or [""], count, "--layers"), strict=True)
    ):
        rows, note = direction.for_styles(n_styles)
        edited = parse_layers(text, n_styles)
        offsets[index, edited] = rows[edited]
        chosen.append(tuple(edited))
        notes.append(note)
    names = tuple(direction.name for direction in directions)
    return Edits(names, offsets, settings, tuple(chosen), tuple(filter(None, notes)))


def parse_strengths(text: str) -> tuple[float, ...]:
    """Return numbers up to a million separated by commas; `ConfigError` for anything else."""
    try:
        numbers = tuple(float(piece) for piece in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(abs(number) <= _MAX_STRENGTH for number in numbers):
        raise ConfigError(f"--strength {text}: expected numbers separated by commas, as in -3,0,3")
    return tuple(float(np.float32(number)) for number in numbers)  # as a table stores them


def signed(strength: float) -> str:
    """Return a strength with its sign: `+3`, `-1.5`, `0`."""
    return f"{strength:+g}" if strength else "0"


def _one_each(values: Sequence[Any], count: int, flag: str) -> list[Any]:
    """Return one value per direction: those given, or the only one for all."""
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise ConfigError(
            f"{flag} is given {len(values)} times for {count} directions: give it once, or once "
            "for each --direction in the same order"
        )
    return list(values)


def _equally_long(lists: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the lists with those of one number repeated to the length of the others."""
    length = max(map(len, lists))
    if any(len(each) not in (1, length) for each in lists):
        lengths = ", ".join(str(len(each)) for each in lists)
        raise ConfigError(
            f"--strength: lists of {lengths} numbers cannot be taken together: give each direction "
            "as many strengths as the others, or one"
        )
    if length > _MAX_SETTINGS:
        raise ConfigError(f"--strength: {length} strengths, at most {_MAX_SETTINGS} are possible")
    return [list(each) * (length if len(each) == 1 else 1) for each in lists]
