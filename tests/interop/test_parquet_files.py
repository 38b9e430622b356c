"""A table becomes few Parquet files, in any order, and codes are read out of them by id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, InputError, TableError
from pipeline.interop import row_order
from pipeline.interop.code_files import faces_of, open_codes
from pipeline.interop.file_series import Series
from pipeline.interop.lineage import lineage_of
from pipeline.interop.parquet_codes import CodeFile, ParquetCodes
from pipeline.interop.parquet_files import export_parquet
from pipeline.storage import Store
from pipeline.table import Table, open_table, reordering
from pipeline.table.reader import UnknownImageError
from pipeline.table.selection import Selection
from tests.conftest import Bucket
from tests.search.tables import table_of
from tests.table.rows import code, damage_codes, face_row, shard, write_shard, writer

FACES = 300


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Two shards of parts of 64 faces; keys do not follow the order of the files."""
    root = tmp_path_factory.mktemp("few") / "table"
    target = writer(root, part_size=64)
    keys = [f"{number * 7 % FACES:04d}.jpg" for number in range(FACES)]
    for name, chosen in (("s-1", keys[:150]), ("s-0", keys[150:])):
        source, parts = shard(name), []
        for part, first in enumerate(range(0, 150, 64)):
            rows = [face_row(key, l2=int(key[:4]) / FACES) for key in chosen[first : first + 64]]
            parts.append(
                target.write_part(source, part, samples=len(rows), latents=rows, rejects=[])
            )
        target.commit_shard(source, parts)
    return open_table(str(root))


def export(table: Table, out: object, rows: int = 100, **options: Any) -> dict[str, int]:
    sort_by = options.pop("sort_by", None)
    series = Series.of(Selection(table, **options), "parquet", rows, sort_by=sort_by)
    return export_parquet(series, str(out))


def ids_in(out: Path) -> list[str]:
    return [str(image) for image in pd.read_parquet(out, columns=["image_id"])["image_id"]]


def test_few_files_have_the_rows_and_types_of_the_table(table: Table, tmp_path: Path) -> None:
    assert export(table, tmp_path) == {"written": FACES, "files": 3, "new_files": 3}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"latents-{number:05d}-of-00003.parquet" for number in range(3)]
    stored = pd.concat(
        pq.ParquetFile(table.store.path(name)).read().to_pandas()
        for name in table.store.names("latents/")
    )
    copy = pd.read_parquet(tmp_path)
    pd.testing.assert_frame_equal(copy, stored.reset_index(drop=True))
    schema = pq.read_schema(tmp_path / names[0])
    assert schema.remove_metadata() == table.spec.columns.latents_schema()
    assert json.loads(schema.metadata[b"restyle.metrics"]) == table.spec.metrics
    frame = pl.read_parquet(tmp_path / "*.parquet", columns=["image_id", "w_plus"])
    assert (frame["w_plus"].to_numpy() == table.w_plus(frame["image_id"].to_list())).all()


def test_codes_of_ids_equal_those_of_the_table(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path, sort_by="image_id")
    ids = ids_in(tmp_path)
    assert ids == sorted(ids)
    drawn = np.random.default_rng(0).permutation(ids)[:60].tolist()
    codes = ParquetCodes(str(tmp_path))
    assert len(codes) == FACES
    assert all(file.plain for file in codes.files)
    expected = table.w_plus(drawn)
    np.testing.assert_array_equal(codes.w_plus(drawn), expected)
    for file in codes.files:
        file.__dict__["plain"] = None  # as in a file of another writer
    np.testing.assert_array_equal(codes.w_plus(drawn), expected)
    with pytest.raises(UnknownImageError, match="has no 's-9/x#0'"):
        codes.w_plus([drawn[0], "s-9/x#0"])
    assert len(codes.files[0].groups_with(ids[:1])) == 1, "by the statistics"


@pytest.mark.parametrize("buffer_bytes", [256 << 20, 100_000])
def test_any_order_is_written_in_bounded_memory(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(reordering, "BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(reordering, "WINDOW_BYTES", 1)
    chosen = {"where": "l2 > 0.1", "order": "md5(image_id) DESC", "limit": 260}
    export(table, tmp_path, 130, **chosen)
    query = Selection(table, **chosen).query("image_id")  # type: ignore[arg-type]
    expected = list(table.sql(query + " LIMIT 260")["image_id"])
    assert ids_in(tmp_path) == expected
    frame = pl.read_parquet(tmp_path / "*.parquet", columns=["key", "w_plus"])
    for row in frame.to_dicts()[::37]:
        np.testing.assert_array_equal(np.array(row["w_plus"]), code(row["key"]))


def test_faces_that_are_alike_stand_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_order, "_CLUSTER_FACES", 4)
    identities = [np.eye(3, dtype=np.float32)[number % 2] for number in range(8)]
    table = table_of(tmp_path / "t", [*identities, None])
    export(table, tmp_path / "out", sort_by="cluster")
    numbers = [int(image.split("/")[1][:4]) for image in ids_in(tmp_path / "out")]
    groups = [numbers[:4], numbers[4:8]]
    assert sorted(groups) == [[0, 2, 4, 6], [1, 3, 5, 7]], "by image id within a cluster"
    assert numbers[8] == 8, "without a vector"


def test_an_interrupted_export_is_completed_with_the_same_bytes(
    table: Table, tmp_path: Path
) -> None:
    export(table, tmp_path, order="l2 DESC")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "latents-00001-of-00003.parquet").unlink()
    assert export(table, tmp_path, order="l2 DESC")["new_files"] == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_export_is_refused_with_the_difference(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out")
    for options, why in (
        ({"rows": 50}, "another --rows-per-file"),
        ({"sort_by": "image_id"}, "other faces or another order"),
        ({"where": "l2 > 0.5"}, "other faces or another order"),
    ):
        with pytest.raises(ConfigError, match=f"is not a file of this export .*{why}"):
            export(table, tmp_path / "out", **options)
    target = writer(tmp_path / "other", part_size=4)
    part = target.write_part(shard(), 0, samples=1, latents=[face_row("a")], rejects=[])
    target.commit_shard(shard(), [part])
    with pytest.raises(ConfigError, match="the table has changed since, or it is of another"):
        export(open_table(str(tmp_path / "other")), tmp_path / "out")


def test_a_damaged_part_is_named_on_every_storage(tmp_path: Path) -> None:
    write_shard(writer(tmp_path / "table"), shard())
    source = open_table(str(tmp_path / "table"))
    damage_codes(source.store, "latents/s-0-00000.parquet")
    copy = Store("memory://damaged/table")
    for name in source.store.names():
        copy.put(name, source.store.get(name))
    for each in (source, open_table(copy.root)):
        with pytest.raises(TableError, match=r"latents/s-0-00000.parquet' is damaged: "):
            export(each, tmp_path / "few")


def test_an_id_twice_in_the_table_is_refused(tmp_path: Path) -> None:
    target = writer(tmp_path / "t", part_size=4)
    for part in range(2):
        target.write_part(shard(), part, samples=1, latents=[face_row("a")], rejects=[])
    with pytest.raises(TableError, match="has an image id twice"):
        export(open_table(str(tmp_path / "t")), tmp_path / "out")


def test_codes_come_back_with_their_faces(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out", where="l2 < 0.2")
    codes = open_codes(str(tmp_path / "out"))
    lineage = codes.origin
    assert lineage is not None
    assert lineage.uri == table.store.root
    names = list(codes.names)
    assert names[0].endswith(".jpg#0"), "the key and the face"
    for name in names[::9]:
        np.testing.assert_array_equal(
            codes.read(name)[0], table.w_plus([lineage.image_ids[name]])[0]
        )


def test_files_of_other_writers_are_read_by_their_columns(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out", where="l2 < 0.2")
    files = str(tmp_path / "out" / "*.parquet")
    edited = str(tmp_path / "edited.parquet")
    duckdb.execute(
        f"COPY (SELECT image_id, w_plus FROM '{files}' ORDER BY md5(image_id)) TO '{edited}'"
    )
    codes = open_codes(edited)
    assert CodeFile(Store(str(tmp_path)), "edited.parquet").plain is None
    assert codes.origin is not None
    assert not codes.origin.uri, "it does not name its table"
    lineage = lineage_of(codes.names, table.store.root, codes.origin.image_ids)
    assert (len(lineage.image_ids), lineage.unmatched) == (len(list(codes.names)), 0)
    for name in list(codes.names)[::9]:
        np.testing.assert_array_equal(codes.read(name)[0], table.w_plus([name])[0])


def test_columns_of_numbers_name_codes_and_lists_do_not(tmp_path: Path) -> None:
    codes = pa.array([code("a").tolist()], pa.list_(pa.list_(pa.float16())))
    pq.write_table(pa.table({"name": [7], "w_plus": codes}), tmp_path / "a.parquet")
    assert [key for key, _ in faces_of(open_codes(str(tmp_path)).names)] == ["7"]
    pq.write_table(pa.table({"key": [["7"]], "w_plus": codes}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column key of type list<element: string>, expected text"):
        open_codes(str(tmp_path))


def test_files_without_rows_are_refused(table: Table, tmp_path: Path) -> None:
    empty = table.spec.columns.latents_schema().empty_table()
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="has no codes: its Parquet files have no rows"):
        open_codes(str(tmp_path))


def test_an_export_to_a_bucket_is_read_by_ranges(table: Table, s3: Bucket) -> None:
    out = f"{s3.uri}/few"
    assert export(table, out, sort_by="image_id")["new_files"] == 3
    assert export(table, out, sort_by="image_id")["new_files"] == 0
    ids = list(table.sql("SELECT image_id FROM latents LIMIT 5")["image_id"])
    np.testing.assert_array_equal(ParquetCodes(out).w_plus(ids), table.w_plus(ids))
