import math

import numpy as np
import pytest

from pipeline.reports.statistics import interval, interval_of_sums, student_t, terciles


# Published tables of Student's t, 97.5 %.
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042)],
)
def test_quantiles_match_published_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, rel=0.002)


def test_quantile_approaches_the_normal_one():
    assert student_t(100_000) == pytest.approx(1.95996, abs=1e-4)


def test_interval_of_four_numbers_is_exact():
    result = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    error = math.sqrt(5 / 3) / 2  # the variance of the four values is 5/3
    assert (result.n, result.mean) == (4, 2.5)
    assert result.half_width == pytest.approx(3.182 * error, rel=0.002)


def test_unmeasured_values_are_not_counted():
    assert interval(np.array([1.0, np.nan, 3.0])).n == 2
    assert interval(np.array([1.0, np.nan, 3.0])).mean == 2.0
    assert interval(np.array([1.0, np.nan, 3.0])).missing == 1


def test_single_value_has_no_interval():
    single, none = interval(np.array([2.0])), interval(np.array([np.nan]))
    assert (single.n, single.mean) == (1, 2.0)
    assert math.isnan(single.half_width)
    assert none.n == 0
    assert math.isnan(none.mean)


def test_interval_covers_the_mean_in_95_percent():
    samples = np.random.default_rng(0).standard_normal((2000, 8))
    covered = [abs(each.mean) <= each.half_width for each in map(interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_interval_from_sums_is_equal():
    values = np.random.default_rng(1).random(50)
    direct = interval(values)
    summed = interval_of_sums(50, values.sum(), (values**2).sum())
    assert (summed.mean, summed.half_width) == pytest.approx((direct.mean, direct.half_width))


def test_thirds_have_equal_sizes():
    thirds = terciles(np.random.default_rng(2).permutation(30).astype(float))
    assert np.bincount(thirds.astype(int)).tolist() == [10, 10, 10]


def test_equal_values_share_a_third():
    assert set(terciles(np.array([5.0, 5.0, 5.0]))) == {0.0}
    assert np.isnan(terciles(np.array([1.0, np.nan]))).tolist() == [False, True]
