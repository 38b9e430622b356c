"""Walks go in straight lines and meet every face exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.editing.rendering import CodeSequence, interpolate, walk, walk_over
from pipeline.errors import ConfigError, RequestError
from tests.editing.conftest import code

A, B, C = code(1), code(2), code(3)


def test_interpolation_is_linear_and_exact_at_its_ends() -> None:
    codes = interpolate(A, B, 5)
    assert np.array_equal(codes[0], A)
    assert np.array_equal(codes[4], B)
    np.testing.assert_allclose(codes[1], A + 0.25 * (B - A), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.diff(codes, axis=0), [(B - A) / 4] * 4, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("closed", "visits"), [(False, {0: A, 3: B, 6: C}), (True, {0: A, 6: C})])
def test_walk_meets_each_face_once(closed: bool, visits: dict[int, np.ndarray]) -> None:
    sequence = walk_over(CodeSequence([A, B, C], 3), 4, closed=closed)
    codes = list(sequence.codes)
    assert len(codes) == sequence.count == (9 if closed else 7)
    for place, face in visits.items():
        assert np.array_equal(codes[place], face)
    if closed:
        np.testing.assert_allclose(codes[-1], C + 2 / 3 * (A - C), atol=1e-6)


def test_walk_reads_faces_while_it_goes() -> None:
    endless = (code(n) for n in itertools.count())
    steps = list(itertools.islice(walk(endless, 2), 5))
    assert np.array_equal(steps[4], code(4))


def test_walk_needs_two_faces_and_two_pictures() -> None:
    with pytest.raises(RequestError, match="at least two faces"):
        list(walk([A], 3, closed=True))
    with pytest.raises(ConfigError, match="at least 2 pictures, got 1"):
        list(walk([A, B], 1))
