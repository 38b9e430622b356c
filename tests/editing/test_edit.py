"""An edited code is the code plus strength times direction, in the chosen rows."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.editing.directions import Direction
from pipeline.editing.edit import edits_of, parse_strengths, signed
from pipeline.editing.layers import parse_layers
from pipeline.editing.w_space import WSpace
from pipeline.errors import ConfigError, ShapeError

SPACE = WSpace("demo", "a" * 64, "b" * 64)
DRAWS = np.random.default_rng(0)
SMILE = Direction("smile", DRAWS.standard_normal((1, 512)).astype(np.float32), w_space=SPACE)
POSE = Direction("pose", DRAWS.standard_normal((12, 512)).astype(np.float32), w_space=SPACE)
CODES = DRAWS.standard_normal((3, 10, 512)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", list(range(10))),
        ("4-8", [4, 5, 6, 7, 8]),
        ("6-", [6, 7, 8, 9]),
        ("9,0-1", [0, 1, 9]),
    ],
)
def test_layers_are_ranges_of_rows(text: str, rows: list[int]) -> None:
    assert parse_layers(text, 10) == rows


@pytest.mark.parametrize("text", ["10", "3-1", "4-10", "a", "-3", "1--2", "1,", "1-2-3", "³"])
def test_impossible_layers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="layers '"):
        parse_layers(text, 10)


def test_one_direction_is_added_exactly() -> None:
    edits = edits_of([SMILE], [parse_strengths("-3,0,0.1")], ["4-8"], SPACE, 10)
    edited = edits.apply(CODES)
    assert edited.dtype == np.float32
    np.testing.assert_array_equal(edited[:, 1], CODES)
    for setting, strength in ((0, -3), (2, 0.1)):
        expected = CODES.copy()
        expected[:, 4:9] += np.float32(strength) * SMILE.rows
        np.testing.assert_array_equal(edited[:, setting], expected)


def test_directions_have_strengths_and_layers_of_their_own() -> None:
    edits = edits_of([SMILE, POSE], [(1.0, 2.0), (-1.0,)], ["", "0-2"], SPACE, 10)
    assert edits.settings == ((1.0, -1.0), (2.0, -1.0))
    expected = CODES + 2 * SMILE.rows
    expected[:, :3] -= POSE.rows[:3]
    np.testing.assert_allclose(edits.apply(CODES)[:, 1], expected, atol=1e-5)
    assert edits.notes == ("direction 'pose' has 12 rows, of which the first 10 are used",)


@pytest.mark.parametrize(
    ("strengths", "layers", "said"),
    [
        ([(1.0,)] * 3, [], "--strength is given 3 times for 2 directions"),
        ([(1.0, 2.0), (1.0, 2.0, 3.0)], [], "lists of 2, 3 numbers"),
        ([(1.0, 1.0)], [], "two of the settings are the same"),
        ([tuple(map(float, range(65)))], [], "at most 64"),
        ([(1.0,)], ["0", "1", "2"], "--layers is given 3 times"),
    ],
)
def test_strengths_that_do_not_fit_are_refused(
    strengths: list[tuple[float, ...]], layers: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        edits_of([SMILE, POSE], strengths, layers, SPACE, 10)


@pytest.mark.parametrize("text", ["", "1,", "x", "nan", "1e99"])
def test_strengths_are_finite_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="expected numbers separated by commas"):
        parse_strengths(text)


def test_strengths_show_their_sign() -> None:
    assert [signed(value) for value in (3.0, -1.5, 0.0, -0.0)] == ["+3", "-1.5", "0", "0"]


def test_codes_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"codes have shape \[3, 8, 512\]"):
        edits_of([SMILE], [(1.0,)], [], SPACE, 10).apply(CODES[:, :8])
