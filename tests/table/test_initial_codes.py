from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import RequestError, TableError
from pipeline.storage import Store
from pipeline.table import InitialCodes, initial_codes, open_table
from pipeline.table.initial_codes import check_condition
from pipeline.table.queries import connect
from pipeline.table.schema import codes_of
from tests.table.rows import code, shard, write_shard, writer


def test_codes_come_in_the_order_of_the_samples(filled: str) -> None:
    codes = InitialCodes(filled, shard("s-0"))
    assert set(codes.keys) == {"a", "x/b", "c"}
    table = codes.of(["c", "unknown", "a"])
    assert table["image_id"].to_pylist() == ["s-0/c#0", "s-0/c#1", "s-0/a#0"]
    expected = np.stack([code("c"), code("c", 1), code("a")])
    np.testing.assert_array_equal(codes_of(table["w_plus"]), expected)


def test_a_condition_selects_faces(filled: str) -> None:
    codes = InitialCodes(filled, shard("s-0"), "face_index = 1 OR key = 'x/b'")
    assert set(codes.keys) == {"x/b", "c"}
    assert codes.of(["a", "x/b", "c"])["image_id"].to_pylist() == ["s-0/x/b#0", "s-0/c#1"]


def test_a_part_without_a_selected_face_has_no_codes(filled: str) -> None:
    table = InitialCodes(filled, shard("s-0"), "lpips > 9").of(["a", "c"])
    assert table.num_rows == 0
    assert len(codes_of(table["w_plus"])) == 0


def test_an_unfinished_shard_is_refused(root: str) -> None:
    table = writer(root)
    write_shard(table, shard("s-0"))
    write_shard(table, shard("s-1"), commit=False)
    InitialCodes(root, shard("s-0"))
    with pytest.raises(TableError, match="has not finished shard 's-1': run its own job first"):
        InitialCodes(root, shard("s-1"))


@pytest.mark.parametrize("where", ["lpipz > 1", "lpips >", "lpips > (SELECT avg(lpips) FROM x)"])
def test_a_wrong_condition_is_refused_at_once(filled: str, where: str) -> None:
    with pytest.raises(RequestError, match=r"where|query failed"):
        check_condition(open_table(filled), where)


def test_a_failed_choice_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(writer(tmp_path), shard("s-0"))
    folders: list[Path] = []

    def spied(store: Store) -> Any:
        connection, files = connect(store)
        folders.append(files.spill)
        return connection, files

    monkeypatch.setattr(initial_codes, "connect", spied)
    with pytest.raises(RequestError, match="where 'lpipz > 1' failed") as error:
        InitialCodes(str(tmp_path), shard("s-0"), "lpipz > 1")
    assert not folders[0].exists(), error  # whose traceback holds the connection


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"etag": "etag-2"}, "shard 's-0' changed since .* 'etag-1' then, 'etag-2' when"),
        ({"size": 101}, "shard 's-0' changed since"),
        ({"uri": "s3://other/s-0.tar"}, "from 's3://in/s-0.tar', .* from 's3://other/s-0.tar'"),
    ],
)
def test_a_shard_of_other_images_is_refused(
    filled: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        InitialCodes(filled, shard("s-0", **change))
