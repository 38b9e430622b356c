"""Sums over the rows of a part, a shard or a table, so that no card has to read the rows again.

The metadata of a part's latents holds them under `restyle.figures`, the manifest of a shard for all
of its parts, and the index for every shard.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import TableError

METRICS = ("l2", "psnr", "lpips", "id_similarity", "residual_norm")
_DIGITS = 9  # of a sum: what the float32 numbers of a part give it

_Number = TypeVar("_Number", int, float)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Figures:
    """What rows add up to.

    Sums and counts are by metric, a number for each step. A face that stopped early counts with its
    last value in every later step, so that all steps are over the same faces: those that the metric
    could be measured on. One that was measured though nobody knows its steps, as a code that was
    imported, counts as if it had taken one. The infinite PSNR of two equal images is in no mean.
    Beyond the last step that is given, all is as it was there.
    """

    reasons: Mapping[str, int] = field(default_factory=dict)  # reject rows
    identified: int = 0  # faces with an `id_similarity`
    sums: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, latents: pa.Table, rejects: pa.Table) -> Figures:
        """The figures of a part's rows."""
        steps = _steps(latents)
        sums, counts = {}, {}
        for name in METRICS:
            values = _every_step(_lists(latents, name, steps), steps)
            sums[name] = [float(f"{one:.{_DIGITS}g}") for one in np.nansum(values, axis=0)]
            counts[name] = (~np.isnan(values)).sum(axis=0).tolist()
        identity = latents["id_similarity"]
        return cls(
            reasons=_sorted(Counter(rejects["reason"].to_pylist())),
            identified=len(identity) - identity.null_count,
            sums=sums,
            counts=counts,
        )

    @classmethod
    def total(cls, several: Iterable[Figures]) -> Figures:
        """The figures of all the rows together."""
        reasons: Counter[str] = Counter()
        identified = 0
        sums: dict[str, list[float]] = {}
        counts: dict[str, list[int]] = {}
        for one in several:
            reasons.update(one.reasons)
            identified += one.identified
            for name in one.sums:
                sums[name] = _added(sums.get(name, ()), one.sums[name])
                counts[name] = _added(counts.get(name, ()), one.counts[name])
        return cls(_sorted(reasons), identified, _sorted(sums), _sorted(counts))

    @classmethod
    def from_dict(cls, facts: Any) -> Figures:
        """What `asdict` made of them; `TypeError` for anything else, whoever wrote it."""
        try:
            figures = cls(**facts)
            _check_counts(figures.reasons.values())
            _check_counts([figures.identified])
            _check_metrics(figures.sums, figures.counts)
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise TypeError(f"these are no figures: {error}") from error
        return figures

    @classmethod
    def from_text(cls, text: str) -> Figures:
        """What `to_text` wrote; `TableError` for anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise TableError(f"the table's index is damaged: {error}") from error

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self), separators=(",", ":"), sort_keys=True)

    @property
    def steps(self) -> int:
        """The most that any face took."""
        return max(map(len, self.counts.values()), default=0)

    def means(self) -> dict[str, list[float | None]]:
        """Of each metric its mean after each step, from step 1; None where it was not measured."""
        return {
            name: [
                total / count if count else None
                for total, count in zip(self.sums[name], self.counts[name], strict=True)
            ]
            for name in self.sums
        }


def _sorted(items: Mapping[str, _Value]) -> dict[str, _Value]:
    return dict(sorted(items.items()))


def _steps(latents: pa.Table) -> list[int]:
    """Of each face the steps it took: 1 where only what came of them is known, 0 where nothing."""
    finals = [latents[name].to_pylist() for name in METRICS if name in latents.column_names]
    measured = [any(one is not None for one in several) for several in zip(*finals, strict=True)]
    made = latents["steps"].to_pylist()
    return [one or int(is_measured) for one, is_measured in zip(made, measured, strict=True)]


def _lists(
    latents: pa.Table, name: str, steps: Sequence[int]
) -> list[Sequence[float | None] | None]:
    """Of each face the values of a metric after its steps; where none are given, the final one."""
    lists: list[Sequence[float | None] | None] = latents[f"{name}_per_step"].to_pylist()
    if name not in latents.column_names:
        return lists  # known of steps alone
    finals = latents[name].to_pylist()
    return [
        [final] * made if values is None else values
        for values, final, made in zip(lists, finals, steps, strict=True)
    ]


def _every_step(lists: Sequence[Sequence[float | None] | None], steps: Sequence[int]) -> np.ndarray:
    """Values of faces after each step, [n, most steps]; NaN where there is none."""
    table = np.full((len(lists), max(steps, default=0)), np.nan)
    for row, values, made in zip(table, lists, steps, strict=True):
        given = (values or ())[:made]
        row[: len(given)] = [np.nan if value is None else value for value in given]
        row[made:] = row[made - 1] if made else np.nan
    return np.where(np.isinf(table), np.nan, table)


def _added(one: Sequence[_Number], other: Sequence[_Number]) -> list[_Number]:
    """The sum at each step; the shorter one goes on with its last value."""
    shorter, longer = sorted((one, other), key=len)
    last: Sequence[_Number] = shorter[-1:] or [0]
    pairs = zip_longest(longer, shorter, fillvalue=last[0])
    return [first + second for first, second in pairs]


def _check_counts(counts: Iterable[Any]) -> None:
    for count in counts:
        if type(count) is not int or not 0 <= count < 2**63:
            raise TypeError(f"{count!r} is no count")


def _check_metrics(sums: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    if not sums.keys() == counts.keys() <= set(METRICS) or (sums and len(sums) < len(METRICS)):
        raise TypeError(f"sums of {sorted(sums)} and counts of {sorted(counts)}")
    if len({len(one) for one in (*sums.values(), *counts.values())}) > 1:
        raise TypeError("not as many steps in each metric")
    for name in sums:
        _check_counts(counts[name])
        if not all(map(math.isfinite, sums[name])):
            raise TypeError(f"the sum of '{name}' is not finite")
