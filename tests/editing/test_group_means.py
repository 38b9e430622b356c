"""Mean codes of groups are exact and in the order of the values."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.editing.group_means import group_means
from pipeline.errors import ConfigError, RequestError
from pipeline.table.selection import Selection
from tests.editing.conftest import TableMaker, code


def test_means_are_those_of_each_group(
    make_table: TableMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.editing.group_means._ROWS", 2)  # several batches
    table = make_table(width=[10, 9, 10, 9, 700], yaw=[0.01, -0.01, 0.2, -0.2, None])
    groups = group_means(Selection(table), "width")
    assert [(group.value, group.faces) for group in groups] == [("9", 2), ("10", 2), ("700", 1)]
    for group, faces in zip(groups, ([1, 3], [0, 2], [4]), strict=True):
        mean = np.mean([code(face) for face in faces], axis=0, dtype=np.float64)
        np.testing.assert_allclose(group.code, mean, rtol=0, atol=1e-7)
    groups = group_means(Selection(table), "round(yaw, 1)")
    assert [(group.value, group.faces) for group in groups] == [
        ("-0.2", 1),
        ("0.0", 2),
        ("0.2", 1),
        (None, 1),
    ], "-0.0 is 0.0, and null comes last"
    (chosen,) = group_means(Selection(table, "width < 10"), "width > 600")
    assert (chosen.value, chosen.faces) == ("false", 2)


def test_too_many_groups_and_wrong_sql_are_refused(make_table: TableMaker) -> None:
    table = make_table(width=list(range(65)))
    with pytest.raises(ConfigError, match=r"--group-by 'width' gives more than 64 groups"):
        group_means(Selection(table), "width")
    for wrong in ("height +", "nothing", "1) FROM rejects --", "read_text('/etc/passwd')"):
        with pytest.raises(RequestError, match=r"^--group-by .* failed: "):
            group_means(Selection(table), wrong)


def test_an_expression_that_changes_is_refused(make_table: TableMaker) -> None:
    with pytest.raises(RequestError, match="when it was computed again"):
        group_means(Selection(make_table(width=[1, 2, 3])), "random()")
