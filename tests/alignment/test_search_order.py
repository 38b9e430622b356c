from __future__ import annotations

import pytest

from pipeline.alignment.search_order import Try, plan_tries

SIZES = [(100, 80), (448, 300), (1024, 1024), (2000, 1500), (4608, 3456), (7000, 100), (9000, 7000)]


def plan(size: tuple[int, int], most: int, *, turns: bool = True) -> list[Try]:
    return plan_tries(size, detector_side=448, search_pixels=most, turns=turns)


def test_without_larger_copies_and_turns_there_are_three_searches() -> None:
    assert plan((1000, 800), 0, turns=False) == [Try(0.448, 0), Try(0.448, 1), Try(0.896, 1)]
    assert plan((400, 300), 0, turns=False) == [Try(1, 0), Try(1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [0, 1_000_000, 64_000_000])
def test_more_is_searched_only_after_the_first_copies(size: tuple[int, int], most: int) -> None:
    first = plan(size, 0, turns=False)
    upright = [each for each in plan(size, most) if not each.turned]
    assert upright[: len(first)] == first
    assert [each for each in upright if each not in first] == [
        each for each in plan(size, most, turns=False) if each not in first
    ]
    larger = [each for each in upright if each not in first]
    assert [each.pixels(size) for each in larger] == sorted(each.pixels(size) for each in larger)
    # A copy's sides are rounded to whole pixels.
    assert all(each.pixels(size) < most * 1.01 for each in larger)


@pytest.mark.parametrize("size", SIZES)
def test_photos_of_sixteen_megapixels_are_searched_as_the_reference_does(
    size: tuple[int, int],
) -> None:
    tries = plan(size, 64_000_000)
    if size[0] * size[1] <= 16_000_000:
        assert {Try(1, 0), Try(1, 1)} <= set(tries)
    assert max(each.pixels(size) for each in tries) <= 64_100_000


def test_a_photo_too_large_to_double_is_enlarged_as_far_as_allowed() -> None:
    tries = plan((6000, 4000), 64_000_000, turns=False)
    assert Try(1, 0) in tries
    assert tries[-1].pixels((6000, 4000)) == pytest.approx(64e6, rel=0.001)
    assert plan((9000, 7000), 16_000_000, turns=False)[-1].scale == pytest.approx(0.504, abs=0.001)


def test_turned_searches_cost_no_more_than_the_largest() -> None:
    for size in SIZES:
        for most in (1_000_000, 64_000_000):
            tries = plan(size, most)
            turned = [each for each in tries if each.turned]
            assert turned, size
            larger = [each for each in turned if each not in plan(size, 0)]
            assert all(4 * each.pixels(size) <= most for each in larger)


def test_no_copy_is_searched_twice() -> None:
    for size in SIZES:
        tries = plan(size, 64_000_000)
        assert len(set(tries)) == len(tries)
