"""Frames are views of a query, under names of their own, and nothing else becomes readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RequestError
from pipeline.storage import Store
from pipeline.table import Table, open_table
from pipeline.table.frames import read_frame
from tests.table.rows import shard, write_shard, writer

LABELS = {"key": ["a", "c"], "smile": [True, False]}
JOIN = "SELECT image_id, smile FROM latents JOIN labels USING (key) ORDER BY image_id"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    root = tmp_path_factory.mktemp("frames") / "table"
    write_shard(writer(root), shard())
    return open_table(str(root))


@pytest.mark.parametrize(
    "frame",
    [
        pa.table(LABELS),
        pa.record_batch(LABELS),
        pd.DataFrame(LABELS),
        pd.DataFrame(LABELS).set_index("key"),
        pl.DataFrame(LABELS),
    ],
    ids=["arrow", "batch", "pandas", "index", "polars"],
)
def test_frames_of_each_library_join_the_table(table: Table, frame: Any) -> None:
    rows = table.sql(JOIN, labels=frame)
    assert list(rows["image_id"]) == ["s-0/a#0", "s-0/c#0", "s-0/c#1"]
    assert list(rows["smile"]) == [True, False, False]
    (batch,) = table.batches(f"{JOIN} LIMIT 2", 10, labels=frame)
    assert batch.column("smile").to_pylist() == [True, False]


def test_queries_see_the_frames_that_they_are_given(table: Table) -> None:
    query = "SELECT max(x.n) AS n FROM x JOIN X AS y USING (n)"
    running = table.batches("SELECT n FROM x", 1, x=pa.table({"n": [7, 8]}))
    assert next(running).column("n").to_pylist() == [7]
    assert table.arrow(query, x=pa.table({"n": [1, 2]}))["n"].to_pylist() == [2]
    assert next(running).column("n").to_pylist() == [8]
    assert table.arrow("WITH x AS (SELECT 5 AS n) FROM x", x=pa.table({"n": [1]})).num_rows == 1
    with pytest.raises(RequestError, match="Table with name X does not exist"):
        table.arrow(query)


def test_batches_read_shards_and_runs(table: Table) -> None:
    (batch,) = table.batches("SELECT shard, n FROM shards, (SELECT count(*) AS n FROM runs)", 10)
    assert batch.to_pylist() == [{"shard": "s-0", "n": 0}]


def test_half_precision_columns_are_read(table: Table) -> None:
    halves = pa.array([0.5, 1.5], pa.float16())
    codes = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float16)), 2)
    frame = pa.table({"x": halves, "codes": codes})
    result = table.arrow("SELECT x, codes[2] AS y FROM f ORDER BY x", f=frame)
    assert result.to_pylist() == [{"x": 0.5, "y": 1.0}, {"x": 1.5, "y": 1.0}]


@pytest.mark.parametrize(
    "name",
    [
        *("latents", "Rejects", "shards", "runs", "latents_without_rows", "duckdb_views"),
        *("sqlite_master", "pragma_database_list", "select", "a b", "x.csv", "", "a;b", "1a"),
    ],
)
def test_a_frame_cannot_take_a_name_with_a_meaning(table: Table, name: str) -> None:
    with pytest.raises(RequestError, match=r"taken|cannot be the name"):
        table.arrow("SELECT 1 FROM latents", **{name: pa.table(LABELS)})


def test_names_of_frames_differ_by_more_than_case(table: Table) -> None:
    with pytest.raises(RequestError, match="the name 'X' of a frame is taken"):
        table.arrow("SELECT 1", x=pa.table(LABELS), X=pa.table(LABELS))


def test_an_object_that_is_no_table_is_refused(table: Table) -> None:
    with pytest.raises(RequestError, match="'labels' is a str: give a pandas, polars or Arrow"):
        table.sql(JOIN, labels="/etc/passwd")
    mixed = pd.DataFrame({"key": ["a", object()]})
    with pytest.raises(RequestError, match="the frame 'labels' cannot be read"):
        table.sql(JOIN, labels=mixed)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["key", "Key"])
    with pytest.raises(RequestError, match="has two columns 'key'"):
        table.sql(JOIN, labels=twice)


@pytest.mark.parametrize(
    "query",
    [
        *("FROM '{file}'", "FROM read_csv('{file}')", "FROM labels, '{file}'", 'FROM "{file}"'),
        *("WITH labels AS (FROM read_text('{file}')) FROM labels", "FROM query('FROM labels')"),
        *("FROM other", "FROM labels.labels", "FROM temp.labels", "DROP VIEW labels"),
        *("COPY labels TO '{file}.out'", "INSERT INTO labels VALUES ('a', true)"),
        "SELECT * FROM labels WHERE (SELECT count(*) FROM read_text('{file}')) > 0",
    ],
)
def test_other_files_stay_refused_with_frames(table: Table, tmp_path: Path, query: str) -> None:
    secret = tmp_path / "labels.csv"
    secret.write_text("key\nhunter2\n")
    with pytest.raises(RequestError, match="the query failed") as error:
        table.arrow(query.format(file=secret), labels=pa.table(LABELS))
    assert "hunter2" not in str(error.value)
    assert list(tmp_path.iterdir()) == [secret]


def test_a_file_gives_the_texts_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("key,code,n,x\n7,007,7,0.5\n12,-010,,\n")
    (tmp_path / "a.tsv").write_text("key\tnote\n7\tone, two\n")
    (tmp_path / "a.ndjson").write_text('{"key": 7, "n": 7}\n{"n": 8}\n')
    pq.write_table(pa.table({"key": ["7"], "n": [7]}), tmp_path / "a.parquet")
    rows = {path.suffix: read_frame(str(path)).to_pylist() for path in tmp_path.iterdir()}
    assert rows == {
        ".csv": [
            {"key": "7", "code": "007", "n": 7, "x": 0.5},
            {"key": "12", "code": "-010", "n": None, "x": None},
        ],
        ".tsv": [{"key": "7", "note": "one, two"}],
        ".ndjson": [{"key": "7", "n": 7}, {"key": None, "n": 8}],
        ".parquet": [{"key": "7", "n": 7}],
    }


def test_a_file_on_any_storage_is_read() -> None:
    Store("memory://labels").put("a.CSV", b"key,smile\na,1\n")
    assert read_frame("memory://labels/a.CSV").to_pylist() == [{"key": "a", "smile": 1}]
    with pytest.raises(InputError, match="is not a file, or does not exist"):
        read_frame("memory://labels/b.csv")
