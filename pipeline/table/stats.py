"""Counts of samples, faces and rejects, and sums of metrics: of a part, a shard, a run or a table.

The footer of a part's latents file holds the sums under `restyle.figures`, a manifest those of all
parts of a shard, and the index those of every shard. So the card needs no rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import TableError
from pipeline.metrics.registry import PER_STEP
from pipeline.storage import LeftOut

# Names of the engine's stages in their order, of which a run records the seconds.
STAGE_NAMES = ("read", "align", "invert", "write")
_DIGITS = 9  # significant digits of a sum of float32 numbers

_NOTHING: Mapping[str, Any] = {}

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Counts:
    """Counts of work done; `+` adds two of them."""

    shards: int = 0
    empty_shards: int = 0  # of these, without a sample
    parts: int = 0
    samples: int = 0
    faces: int = 0
    rejects: int = 0  # reject rows
    reasons: Counter[str] = field(default_factory=Counter)  # reject rows by reason, if known
    icc_ignored: int = 0  # images with faces whose colour profile is damaged or does not fit
    identity_missed: int = 0  # faces whose identity could not be measured: null in the table
    bytes: int = 0  # of the input
    left_out: LeftOut = field(default_factory=LeftOut)  # files that readers passed over
    stage_seconds: Counter[str] = field(default_factory=Counter)  # summed over workers
    inversion_seconds: float = 0.0  # of the method alone, without metrics and tables

    def __add__(self, other: Counts) -> Counts:
        """Return the sum of both counts."""
        sums = {name: _add(getattr(self, name), getattr(other, name)) for name in _COUNT_NAMES}
        return Counts(**sums)

    def scaled(self, scale: float) -> Counts:
        """Return the counts with parts, samples, faces, rejects and bytes times `scale`."""
        names = ("parts", "samples", "faces", "rejects", "bytes")
        return replace(self, **{name: round(getattr(self, name) * scale) for name in names})


_COUNT_NAMES = tuple(each.name for each in fields(Counts))


@dataclass(frozen=True)
class MetricSums:
    """Sums and counts of every metric by step.

    A face that stopped early counts with its last value in every later step, so that all steps
    cover the same faces: those that the metric could be measured on. A measured face whose number
    of steps is unknown, such as an imported code, counts as one step. A metric of the best step
    alone counts with that value in every step. The infinite PSNR of two equal images is excluded.
    Later steps than the lists have equal the last one.
    """

    identified: int = 0  # faces with an `id_similarity`
    sums: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, latents: pa.Table, best_alone: Collection[str] = ()) -> MetricSums:
        """Add up the rows of a part; `best_alone` are the metrics of the best step alone."""
        steps = _steps(latents)
        sums, counts = {}, {}
        for name in PER_STEP:
            lists = _lists(latents, name, steps, best_alone=name in best_alone)
            values = _every_step(lists, steps)
            sums[name] = [float(f"{total:.{_DIGITS}g}") for total in np.nansum(values, axis=0)]
            counts[name] = (~np.isnan(values)).sum(axis=0).tolist()
        identity = latents["id_similarity"]
        return cls(len(identity) - identity.null_count, sums, counts)

    def __add__(self, other: MetricSums) -> MetricSums:
        """Return the sums over the rows of both."""
        names = sorted(self.sums.keys() | other.sums.keys())
        return MetricSums(
            self.identified + other.identified,
            {name: _add_steps(self.sums.get(name, ()), other.sums.get(name, ())) for name in names},
            {
                name: _add_steps(self.counts.get(name, ()), other.counts.get(name, ()))
                for name in names
            },
        )

    @property
    def steps(self) -> int:
        """Largest number of steps of any face."""
        return max(map(len, self.counts.values()), default=0)

    def means(self, best_alone: Collection[str] = ()) -> dict[str, list[float | None]]:
        """Return the mean of each metric after each step; None where it was not measured.

        Of `best_alone`, the metrics of the best step alone, only the last entry is a number.
        """
        means = {
            name: [
                total / count if count else None
                for total, count in zip(self.sums[name], self.counts[name], strict=True)
            ]
            for name in self.sums
        }
        return means | {
            name: [*[None] * (len(means[name]) - 1), *means[name][-1:]]
            for name in best_alone
            if name in means
        }


@dataclass(frozen=True)
class Stats:
    """Counts and metric sums of the same rows; `+` adds two of them."""

    counts: Counts = field(default_factory=Counts)
    sums: MetricSums = field(default_factory=MetricSums)

    @classmethod
    def of(cls, latents: pa.Table, rejects: pa.Table, best_alone: Collection[str] = ()) -> Stats:
        """Count and add up the rows of a part; `best_alone` as in `MetricSums.of`."""
        reasons = Counter(rejects["reason"].to_pylist())
        counts = Counts(
            parts=1, faces=latents.num_rows, rejects=rejects.num_rows, reasons=_sorted(reasons)
        )
        return cls(counts, MetricSums.of(latents, best_alone))

    def __add__(self, other: Stats) -> Stats:
        """Return the stats of the rows of both."""
        return Stats(self.counts + other.counts, self.sums + other.sums)

    def figures(self) -> dict[str, Any]:
        """Return rejects by reason and metric sums, in the form of footers and manifests."""
        return {"reasons": dict(_sorted(self.counts.reasons)), **vars(self.sums)}

    def figures_text(self) -> str:
        """Return `figures` as one line of JSON."""
        return json.dumps(self.figures(), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_figures(cls, figures: Any, counts: Counts | None = None) -> Stats:
        """Return `counts` with the reasons and sums of `figures`; `TypeError` if it is damaged."""
        try:
            reasons, sums = _parse(**figures)
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise TypeError(f"the figures are damaged: {error}") from error
        return cls(replace(counts or Counts(), reasons=reasons), sums)

    @classmethod
    def from_text(cls, text: str, counts: Counts | None = None) -> Stats:
        """Read a line of `figures_text`; `TableError` if it is damaged."""
        try:
            return cls.from_figures(json.loads(text), counts)
        except (TypeError, ValueError, RecursionError) as error:
            raise TableError(f"the table's index is damaged: {error}") from error


def _parse(
    reasons: Any = _NOTHING, identified: Any = 0, sums: Any = _NOTHING, counts: Any = _NOTHING
) -> tuple[Counter[str], MetricSums]:
    _check_counts(reasons.values())
    _check_counts([identified])
    _check_metrics(sums, counts)
    return Counter(reasons), MetricSums(identified, sums, counts)


def _add(first: Any, second: Any) -> Any:
    if not isinstance(first, dict):
        return first + second
    if not second:
        return first
    added = type(first)(first)
    (added.merge if isinstance(added, LeftOut) else added.update)(second)
    return added


def _sorted(counts: Counter[str]) -> Counter[str]:
    return Counter(dict(sorted(counts.items())))


def _steps(latents: pa.Table) -> list[int]:
    """Return the steps of each face: 1 if only final values are known, 0 without any values."""
    finals = [latents[name].to_pylist() for name in PER_STEP if name in latents.column_names]
    measured = [any(value is not None for value in face) for face in zip(*finals, strict=True)]
    steps = latents["steps"].to_pylist()
    return [count or int(is_measured) for count, is_measured in zip(steps, measured, strict=True)]


def _lists(
    latents: pa.Table, name: str, steps: Sequence[int], *, best_alone: bool
) -> list[Sequence[float | None] | None]:
    """Return a metric after each step of each face.

    The final value is repeated where there is no list, and for a metric of the best step alone.
    """
    lists: list[Sequence[float | None] | None] = latents[f"{name}_per_step"].to_pylist()
    if name not in latents.column_names:
        return lists  # this metric has no final value
    finals = latents[name].to_pylist()
    return [
        [final] * count if values is None or best_alone else values
        for values, final, count in zip(lists, finals, steps, strict=True)
    ]


def _every_step(lists: Sequence[Sequence[float | None] | None], steps: Sequence[int]) -> np.ndarray:
    """Return the values after each step as [n, largest number of steps]; NaN if missing."""
    table = np.full((len(lists), max(steps, default=0)), np.nan)
    for row, values, count in zip(table, lists, steps, strict=True):
        given = (values or ())[:count]
        row[: len(given)] = [np.nan if value is None else value for value in given]
        row[count:] = row[count - 1] if count else np.nan
    return np.where(np.isinf(table), np.nan, table)


def _add_steps(first: Sequence[_Number], second: Sequence[_Number]) -> list[_Number]:
    """Return the sum at each step; the shorter list continues with its last value."""
    shorter, longer = sorted((first, second), key=len)
    last: Sequence[_Number] = shorter[-1:] or [0]
    pairs = zip_longest(longer, shorter, fillvalue=last[0])
    return [value + other for value, other in pairs]


def _check_counts(counts: Iterable[Any]) -> None:
    for count in counts:
        if type(count) is not int or not 0 <= count < 2**63:
            raise TypeError(f"{count!r} is not a count")


def _check_metrics(sums: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    if not sums.keys() == counts.keys() <= set(PER_STEP) or (sums and len(sums) < len(PER_STEP)):
        raise TypeError(
            f"sums of {sorted(sums)} and counts of {sorted(counts)}, not of {sorted(PER_STEP)}"
        )
    if len({len(values) for values in (*sums.values(), *counts.values())}) > 1:
        raise TypeError("the metrics have different numbers of steps")

    for name in sums:
        _check_counts(counts[name])
        if not all(map(math.isfinite, sums[name])):
            raise TypeError(f"the sum of '{name}' is not finite")
