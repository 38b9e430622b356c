"""Selection of a table's rows by condition, order and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RequestError
from pipeline.table import Table, open_table, reordering
from pipeline.table import selection as selection_module
from pipeline.table.selection import Selection
from tests.table.rows import face_row, shard, writer


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = writer(tmp_path)
    rows = [face_row(key, l2=l2) for key, l2 in zip("abcd", (0.3, 0.1, 0.4, 0.1), strict=True)]
    made.commit_shard(shard(), [made.write_part(shard(), 0, samples=4, latents=rows, rejects=[])])
    return open_table(str(tmp_path))


def _ids(selection: Selection) -> list[str]:
    return [row["image_id"] for row in selection.rows("image_id")]


def test_rows_come_in_order_up_to_the_limit(table: Table) -> None:
    assert _ids(Selection(table, order="l2 DESC")) == ["s-0/c#0", "s-0/a#0", "s-0/b#0", "s-0/d#0"]
    assert _ids(Selection(table, "l2 < 0.4", "l2", 2)) == ["s-0/b#0", "s-0/d#0"]
    assert Selection(table, limit=3).count() == 3
    assert Selection(table, "l2 > 0.2 -- both", "l2 DESC -- worst first", 9).require_rows() == 2


def test_codes_come_in_batches(table: Table) -> None:
    batches = list(Selection(table, order="key").code_batches(3))
    assert [batch.column("image_id").to_pylist() for batch, _ in batches] == [
        ["s-0/a#0", "s-0/b#0", "s-0/c#0"],
        ["s-0/d#0"],
    ]
    codes = np.concatenate([codes for _, codes in batches])
    assert np.array_equal(codes, table.w_plus([f"s-0/{key}#0" for key in "abcd"]))


@pytest.mark.parametrize("buffer_bytes", [1, 1 << 30])
@pytest.mark.parametrize("limit", [None, 7])
def test_codes_come_in_any_order_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int, limit: int | None
) -> None:
    monkeypatch.setattr(selection_module, "_SORTED_ROWS", 2)
    monkeypatch.setattr(selection_module, "_READ_ROWS", 3)
    monkeypatch.setattr(reordering, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(reordering, "WINDOW_BYTES", 1)
    made = writer(tmp_path)
    numbers = np.random.default_rng(0).permutation(12)
    for part in (0, 1):
        drawn = numbers[6 * part : 6 * part + 6]
        rows = [face_row(f"{number:02}", l2=number / 8) for number in drawn]
        made.write_part(shard(), part, samples=6, latents=rows, rejects=[])
    table = open_table(str(tmp_path))
    selection = Selection(table, "l2 > 0.2", "l2 DESC", limit)
    batches = list(selection.code_batches(2, "image_id, l2, key || '!' AS name"))
    expected = [f"s-0/{number:02}#0" for number in range(11, 1, -1)][:limit]
    assert [batch.num_rows for batch, _ in batches[:3]] == [2, 2, 2]
    rows_of_all = pa.Table.from_batches([batch for batch, _ in batches])
    assert rows_of_all["image_id"].to_pylist() == expected
    assert rows_of_all["name"][0].as_py() == "11!"
    codes = np.concatenate([codes for _, codes in batches])
    np.testing.assert_array_equal(codes, table.w_plus(expected))
    shuffled = [row["key"] for row in Selection(table, order="random()").rows("key, w_plus")]
    assert sorted(shuffled) == [f"{number:02}" for number in range(12)]
    assert not list(Selection(table, "l2 > 9", "l2").code_batches(2))
    with pytest.raises(RequestError, match="selects other rows each time"):
        list(Selection(table, "l2 < 1")._placed("w_plus", pa.chunked_array([["s-0/11#0"]])))


@pytest.mark.parametrize(
    "order",
    [
        "",
        "l2 LIMIT 1",
        "l2; SELECT 1",
        "l2) --",
        "unknown",
        "read_text('/etc/passwd')",
        "getenv('A')",
    ],
)
def test_an_order_is_a_list_of_columns(table: Table, order: str) -> None:
    if not order:
        assert len(_ids(Selection(table, order=order))) == 4
        return
    with pytest.raises(RequestError):
        _ids(Selection(table, order=order))


def test_a_selection_of_no_rows_is_refused(table: Table) -> None:
    with pytest.raises(RequestError, match='--where "l2 > 9" selects no face'):
        Selection(table, "l2 > 9").require_rows()


def test_quads_and_landmarks_are_no_codes(table: Table) -> None:
    row = next(Selection(table).rows("align_quad, landmarks, w_plus"))
    assert row["align_quad"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert (len(row["landmarks"]), row["w_plus"].shape) == (68, (6, 512))
