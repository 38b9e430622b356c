"""A mix takes each row of the code from exactly one face."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.editing.mixing import mix, parse_mix
from pipeline.errors import ConfigError
from tests.editing.conftest import code


def test_rows_come_from_the_face_that_gives_them() -> None:
    sources = parse_mix(["s:0/a.jpg#0:0-1,7", "b:2-6", "c:8-"], 10)
    assert [source.rows for source in sources] == [(0, 1, 7), (2, 3, 4, 5, 6), (8, 9)]
    assert sources[0].image_id == "s:0/a.jpg#0", "ids may hold colons"
    codes = np.stack([code(1), code(2), code(3)])
    mixed = mix(codes, sources)
    owner = [0, 0, 1, 1, 1, 1, 1, 0, 2, 2]
    assert all(np.array_equal(mixed[row], codes[face, row]) for row, face in enumerate(owner))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a:0-3", "b:5-"], "rows 4 are given by no face; the model's codes have rows 0 to 9"),
        (["a:0-5", "b:4-"], "rows 4-5 are given by more than one face"),
        (["a:0-10"], "'0-10' is not a range of the model's 10 rows"),
        (["a:x"], "'x' is not a row such as 4"),
        (["a"], "give an image id and rows, such as ID:0-3"),
        ([":0-"], "give an image id and rows"),
    ],
)
def test_incomplete_and_double_rows_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_mix(texts, 10)
