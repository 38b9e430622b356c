"""Check the figures of a benchmark."""

from __future__ import annotations

import pytest

from pipeline.engine.simulate import MIN_PARTS, Trace


def trace(parts: int) -> Trace:
    """Return one part per second, each of 0.9 s in an inverter and 0.5 s on its GPU."""
    result = Trace()
    result.points = [(n, 0.9 * n, 0.5 * n, 0.03 * n, 500.0 + n) for n in range(parts)]
    return result


def test_how_busy_the_inverters_were() -> None:
    said = trace(100).summary(2)
    assert said["inverter_busy"] == pytest.approx(0.45)
    assert said["gpu_busy"] == pytest.approx(0.25)
    assert said["driver_cpu_milliseconds_a_part"] == pytest.approx(30)
    assert (said["driver_megabytes_first"], said["driver_megabytes_last"]) == (500, 599)
    assert said["driver_megabytes_by_tenths"] == list(range(509, 600, 10))


@pytest.mark.parametrize("inverters", [1, 4])
def test_a_few_parts_do_not_tell_how_busy(inverters: int) -> None:
    """With four parts, two started before the clock, and the share would be above one."""
    middle = MIN_PARTS * inverters
    assert trace(middle).summary(inverters)["gpu_busy"] is None
    assert trace(2 * middle).summary(inverters)["gpu_busy"] is not None


def test_a_run_of_no_parts_says_nothing() -> None:
    assert Trace().summary(1) == {}
