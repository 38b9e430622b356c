"""Which copies of a photo are searched for a face, in which order: cheap ones first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.alignment.rotation import TURNS

# A turned search is three. On copies of a quarter they cost together what the last upright one did.
_TURNED_SHARE = 0.25


@dataclass(frozen=True)
class Try:
    """One search: on a copy of `scale`, doubled `upsample` times, upright or in three turns."""

    scale: float
    upsample: int
    turned: bool = False

    def searched(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what is searched of an image of `size`, before a turn."""
        width, height = (max(1, round(edge * self.scale)) << self.upsample for edge in size)
        return width, height

    def pixels(self, size: tuple[int, int]) -> int:
        """How many pixels that has."""
        width, height = self.searched(size)
        return width * height


def plan_tries(
    size: tuple[int, int],  # (width, height)
    *,
    detector_side: int,
    search_pixels: int,
    turns: bool,
) -> list[Try]:
    """The searches for the face of an image, which end with the first that finds one.

    First copies of at most `detector_side` pixels and twice that, also turned ones. Then larger
    ones in the order of their cost, of at most `search_pixels`: the last are the image as it is
    and doubled once, as the reference scripts search it.
    """
    longest, side = max(size), detector_side
    tries = [
        *(_fitting(longest, side, 0), _fitting(longest, side, 1)),
        *(_fitting(longest, side, 0, turned=True), _fitting(longest, 2 * side, 1)),
        _fitting(longest, side, 1, turned=True),
    ]
    if search_pixels:
        larger = list(_larger(size, side, search_pixels))
        larger += [
            Try(each.scale, each.upsample, turned=True)
            for each in (_fitting(longest, 2 * side, 1), *larger)
            if each.pixels(size) <= search_pixels * _TURNED_SHARE
        ]
        tries += sorted(larger, key=lambda each: each.pixels(size) * _searches(each))
    return list(dict.fromkeys(each for each in tries if turns or not each.turned))


def _searches(each: Try) -> int:
    return len(TURNS) if each.turned else 1


def _fitting(longest: int, side: int, upsample: int, *, turned: bool = False) -> Try:
    # A small image is its own copy at any larger side.
    return Try(min(side / longest, 1), upsample, turned)


def _larger(size: tuple[int, int], detector_side: int, most: int) -> Iterator[Try]:
    """Upright searches after the first ones, the last of at most `most` pixels."""
    longest, side = max(size), 8 * detector_side
    tries = []
    while side * 1.5 <= longest:
        tries.append(Try(side / longest, 0))
        side *= 2
    tries += [Try(1, 0), Try(1, 1)]
    yield from (each for each in tries if each.pixels(size) <= most)
    bounded = Try(math.sqrt(most / (size[0] * size[1])), 0)
    first = _fitting(longest, 2 * detector_side, 1)
    if first.pixels(size) < bounded.pixels(size) and bounded.scale < 2:
        yield bounded
