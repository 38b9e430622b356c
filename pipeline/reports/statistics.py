"""Means over faces and their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEVEL = 0.975  # both tails together leave 5 %


@dataclass(frozen=True)
class Interval:
    """Mean over `n` values with half the width of its 95 % confidence interval.

    The mean of no values and the half width of fewer than two values are NaN. `missing` is the
    number of values that were not measured; they are not in the mean.
    """

    n: int
    mean: float
    half_width: float
    missing: int = 0


def interval(values: Floats) -> Interval:
    """Return mean and 95 % interval (Student's t) of values of any shape; NaN is not measured."""
    measured = values[~np.isnan(values)].astype(np.float64)
    n, missing = measured.size, values.size - measured.size
    if n < 2:
        return Interval(n, float(measured.mean()) if n else math.nan, math.nan, missing)
    error = float(measured.std(ddof=1)) / math.sqrt(n)
    return Interval(n, float(measured.mean()), student_t(n - 1) * error, missing)


def interval_of_sums(n: int, total: float, squares: float) -> Interval:
    """Return the interval of `n` values from their sum and their sum of squares."""
    if n < 2:
        return Interval(n, float(total) if n else math.nan, math.nan)
    mean = float(total) / n
    variance = max(0.0, float(squares) - n * mean**2) / (n - 1)
    return Interval(n, mean, student_t(n - 1) * math.sqrt(variance / n))


def student_t(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with 1 or more degrees of freedom, to 0.2 %.

    Uses closed forms for 1 and 2, otherwise the expansion around the normal quantile (Abramowitz
    and Stegun, 26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi * (_LEVEL - 0.5))
    if freedom == 2:
        both = 2 * _LEVEL - 1
        return both * math.sqrt(2 / (1 - both**2))
    z = NormalDist().inv_cdf(_LEVEL)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / freedom**power for power, term in enumerate(terms, 1)), start=0.0)


def terciles(values: Floats) -> Floats:
    """Return the third (0, 1, 2) of each value; NaN stays NaN.

    The borders are quantiles. Equal values are always in the same third, so that a third can be
    empty.
    """
    thirds = np.full(values.shape, np.nan)
    measured = ~np.isnan(values)
    if measured.any():
        borders = np.quantile(values[measured], [1 / 3, 2 / 3])
        thirds[measured] = np.searchsorted(borders, values[measured], side="left")
    return thirds
