"""Plain readers get the table right without this library."""

from __future__ import annotations

from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.table.rows import N_STYLES, code, reject_row, shard, write_shard, writer

KEYS = ["a", "x/b", "c", "c"]
FACES = [0, 0, 0, 1]
CODES = np.stack([code(key, face) for key, face in zip(KEYS, FACES, strict=True)])


@pytest.fixture(params=["float16", "float32"])
def latents(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A pattern of files: one with rows, one without, and a temporary file of a killed writer."""
    columns = writer(tmp_path / "other").description.columns
    kind = {"w_plus_dtype": request.param}
    table = writer(tmp_path, columns=type(columns)(N_STYLES, **kind))
    write_shard(table, shard())
    (tmp_path / "latents" / ".s-0-00000.parquet.1-ab.tmp").write_bytes(b"half")
    return str(tmp_path / "latents" / "*.parquet")


def number(latents: str) -> type:
    """The numpy type of the numbers of the codes."""
    name = next(iter(Path(latents).parent.glob("*.parquet")))
    kind = pq.read_schema(name).field("w_plus").type.value_type.value_type
    return np.float16 if pa.types.is_float16(kind) else np.float32


def test_duckdb_reads_codes_with_their_shape(latents: str) -> None:
    rows = duckdb.connect().execute(f"SELECT key, w_plus FROM '{latents}'").fetchall()
    assert [key for key, _ in rows] == KEYS
    assert (np.array([rows for _, rows in rows]) == CODES).all()


def test_duckdb_computes_with_codes(latents: str) -> None:
    query = f"SELECT typeof(w_plus), list_sum(w_plus[2]), len(w_plus) FROM '{latents}' LIMIT 1"
    (row,) = duckdb.connect().execute(query).fetchall()
    assert row[0] == "FLOAT[][]"
    assert row[1] == pytest.approx(CODES[0, 1].astype(np.float64).sum())
    assert row[2] == N_STYLES


def test_pandas_reads_codes_with_their_shape(latents: str) -> None:
    frame = pd.read_parquet(Path(latents).parent)
    assert frame["key"].tolist() == KEYS
    codes = np.stack([np.stack(rows) for rows in frame["w_plus"]])
    assert codes.dtype == number(latents)
    assert (codes == CODES).all()


def test_polars_reads_codes_with_their_shape(latents: str) -> None:
    frame = pl.read_parquet(latents)
    kind = pl.Float16 if number(latents) is np.float16 else pl.Float32
    assert frame.schema["w_plus"] == pl.Array(kind, (N_STYLES, 512))
    assert (frame["w_plus"].to_numpy() == CODES).all()
    assert frame["key"].to_list() == KEYS


def test_polars_scans_one_column(latents: str) -> None:
    frame = pl.scan_parquet(latents).filter(pl.col("key") == "x/b").select("w_plus").collect()
    assert (frame["w_plus"].to_numpy() == CODES[1:2]).all()


def test_hugging_face_datasets_reads_codes_with_their_shape(latents: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset("parquet", data_files=latents, split="train", cache_dir=cache)
    assert rows.features["w_plus"].length == N_STYLES
    assert rows.features["w_plus"].feature.length == 512
    codes = rows.with_format("numpy")[:]["w_plus"]
    assert codes.shape == (4, N_STYLES, 512)
    assert (codes == CODES).all()


def test_pyarrow_reads_codes_with_their_shape(latents: str) -> None:
    table = pq.read_table(Path(latents).parent)
    kind = pa.float16() if number(latents) is np.float16 else pa.float32()
    assert table.schema.field("w_plus").type == pa.list_(pa.list_(kind, 512), N_STYLES)
    codes = table["w_plus"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    assert (codes.reshape(CODES.shape) == CODES).all()


def test_a_table_of_rejects_alone_reads_as_no_rows(tmp_path: Path) -> None:
    """Hugging Face datasets is not among them: it refuses every data set of no rows."""
    table = writer(tmp_path)
    table.write_part(shard(), 0, samples=1, latents=[], rejects=[reject_row("a")])
    folder = tmp_path / "latents"
    pattern = str(folder / "*.parquet")
    assert duckdb.connect().execute(f"SELECT count(*) FROM '{pattern}'").fetchall() == [(0,)]
    assert pd.read_parquet(folder).shape == (0, len(table.description.columns.latents_schema()))
    assert pl.read_parquet(pattern).schema["w_plus"] == pl.Array(pl.Float16, (N_STYLES, 512))
    assert pq.read_table(folder).num_rows == 0
