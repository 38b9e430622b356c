"""Read a table on a disk and in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, RequestError, TableError
from pipeline.storage import Store
from pipeline.table import open_table
from pipeline.table.reader import UnknownImageError
from tests.conftest import Bucket
from tests.table.rows import N_STYLES, code, damage_codes, face_row, shard, write_shard, writer


def test_sql_sees_latents_rejects_and_shards(filled: str) -> None:
    table = open_table(filled)
    ids = table.sql("SELECT image_id FROM latents ORDER BY image_id")["image_id"].tolist()
    names = ["a#0", "c#0", "c#1", "x/b#0"]
    assert ids == [f"{shard_id}/{name}" for shard_id in ("s-0-00000", "s-0") for name in names]
    reasons = table.sql("SELECT reason, count(*) AS n FROM rejects GROUP BY ALL ORDER BY reason")
    assert reasons.to_dict("list") == {
        "reason": ["crashed", "face_too_small", "no_face"],
        "n": [2, 2, 4],
    }
    query = "SELECT shard, samples, parts FROM Shards JOIN latents USING (shard) LIMIT 1"
    assert table.sql(query)[["samples", "parts"]].values.tolist() == [[6, 2]]


def test_sql_returns_codes_and_nulls(filled: str) -> None:
    table = open_table(filled)
    frame = table.sql(
        "SELECT w_plus, id_similarity_per_step FROM latents WHERE image_id = 's-0/c#1'"
    )
    assert (np.stack(frame["w_plus"][0]) == code("c", 1)).all()
    assert np.isnan(frame["id_similarity_per_step"][0][0])
    first = table.arrow("SELECT id_similarity_per_step AS s FROM latents LIMIT 1")["s"]
    assert first.to_pylist() == [[None, 0.25, 0.5]]


def test_a_parent_folder_is_never_a_column(tmp_path: Path) -> None:
    root = tmp_path / "steps=10" / "shard=x" / "run=7"
    write_shard(writer(root), shard())
    rows = open_table(str(root)).sql("SELECT DISTINCT steps, shard FROM latents")
    assert rows.to_dict("records") == [{"steps": 3, "shard": "s-0"}]
    assert "run" not in open_table(str(root)).sql("SELECT * FROM latents LIMIT 1")


def test_codes_come_in_the_requested_order(filled: str) -> None:
    ids = ["s-0-00000/c#1", "s-0/x/b#0", "s-0/a#0", "s-0/x/b#0"]
    codes = open_table(filled).w_plus(ids)
    assert codes.shape == (4, N_STYLES, 512)
    assert codes.dtype == np.float32
    expected = [code("c", 1), code("x/b"), code("a"), code("x/b")]
    assert (codes == np.stack(expected)).all()


def test_codes_of_many_shards_take_one_listing_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s-0", "s-1"):
        write_shard(writer(tmp_path), shard(name))
    prefixes, each_name = [], Store.each_name

    def spied(store: Store, prefix: str = "") -> Iterator[str]:
        prefixes.append(prefix)
        return each_name(store, prefix)

    monkeypatch.setattr(Store, "each_name", spied)
    assert len(open_table(str(tmp_path)).w_plus(["s-1/a#0", "s-0/a#0"])) == 2
    assert prefixes == ["latents/"]


def test_no_ids_give_no_codes(filled: str) -> None:
    assert open_table(filled).w_plus([]).shape == (0, N_STYLES, 512)


def test_an_id_instead_of_a_list_is_refused(filled: str) -> None:
    with pytest.raises(RequestError, match=r"takes a list of image ids.*\['s-0/a#0'\]"):
        open_table(filled).w_plus("s-0/a#0")


def test_damaged_codes_are_a_damaged_table(filled: str) -> None:
    damage_codes(Store(filled), "latents/s-0-00000.parquet")
    with pytest.raises(TableError, match=r"latents/s-0-00000.parquet' is damaged: "):
        open_table(filled).w_plus(["s-0/a#0"])


def test_missing_ids_are_named(filled: str) -> None:
    with pytest.raises(UnknownImageError, match=r"has no 's-0/nope#0', 'other/a#0'$") as caught:
        open_table(filled).w_plus(["s-0/a#0", "s-0/nope#0", "other/a#0"])
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nope FROM latents", "SELECT * FROM table_x"])
def test_the_error_of_a_query_is_one_line(filled: str, query: str) -> None:
    with pytest.raises(RequestError, match="the query failed: ") as caught:
        open_table(filled).sql(query)
    assert "\n" not in str(caught.value)


def test_python_variables_are_not_tables(filled: str) -> None:
    frame = open_table(filled).sql("SELECT 1 AS one")
    assert len(frame) == 1
    with pytest.raises(RequestError, match="frame does not exist"):
        open_table(filled).sql("SELECT * FROM frame")


def test_a_table_without_parts_can_be_queried(root: str) -> None:
    writer(root)
    table = open_table(root)
    assert table.sql("SELECT w_plus, l2 FROM latents").empty
    assert table.sql("SELECT count(*) AS n FROM rejects")["n"].tolist() == [0]
    assert table.sql("SELECT * FROM shards").empty
    assert set(table.verify().values()) == {0}


def test_a_folder_without_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'{tmp_path}' is not a table: it has no _table.json"):
        open_table(str(tmp_path))


def test_a_damaged_spec_is_named(root: str) -> None:
    for content in (b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 99}'):
        Store(root).put("_table.json", content)
        with pytest.raises(TableError, match="table"):
            open_table(root)


def test_the_spec_is_read_as_written(filled: str) -> None:
    table = open_table(filled)
    assert table.spec.to_dict() == writer(filled).spec.to_dict()
    assert table.spec.model["licence"] == "MIT"
    assert [manifest.shard for manifest in table.shards()] == ["s-0", "s-0-00000"]


def test_only_the_selected_columns_are_fetched(s3: Bucket) -> None:
    root = f"{s3.uri}/table"
    size = _large_table(root)
    table = open_table(root)
    table.sql("SELECT image_id, l2 FROM latents ORDER BY l2 LIMIT 10")
    assert 0 < table.bytes_read < size / 10
    before = table.bytes_read
    table.sql("SELECT w_plus FROM latents")
    assert table.bytes_read - before > size / 2


def test_only_the_requested_row_groups_are_fetched(s3: Bucket) -> None:
    root = f"{s3.uri}/table"
    size = _large_table(root)
    table = open_table(root)
    frame = table.sql("SELECT w_plus FROM latents WHERE key = '0300'")
    assert (np.stack(frame["w_plus"][0]) == code("0300")).all()
    assert 0 < table.bytes_read < size / 2


def _large_table(root: str) -> int:
    """Three row groups of 128 codes; the bytes of the file."""
    table = writer(root, part_size=384)
    faces = [face_row(f"{i:04d}") for i in range(384)]
    part = table.write_part(shard(), 0, samples=384, latents=faces, rejects=[])
    table.commit_shard(shard(), [part])
    return table.store.info("latents/s-0-00000.parquet").size


def test_a_table_can_be_read_while_a_job_writes(filled: str) -> None:
    table = writer(filled)
    opened = open_table(filled)
    assert len(opened.sql("SELECT 1 FROM latents")) == 8
    write_shard(table, shard("s-1"), commit=False)
    assert len(opened.sql("SELECT 1 FROM latents")) == 8
    assert len(open_table(filled).sql("SELECT 1 FROM latents")) == 12
