"""Other programs read the table correctly without this library."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.table import Columns, open_table
from pipeline.table.card import write_card
from tests.table.rows import N_STYLES, code, reject_row, shard, write_shard, writer

KINDS = [(dtype, optional) for dtype in ("float16", "float32") for optional in (False, True)]
KEYS = ["a", "x/b", "c", "c"]
FACES = [0, 0, 0, 1]
CODES = np.stack([code(key, face) for key, face in zip(KEYS, FACES, strict=True)])
STEPS = CODES[:2]
IDENTITY = np.array([0.6, -0.8, *[0] * 126], np.float16).astype(np.float32)


def jpeg() -> bytes:
    """A small picture."""
    sink = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 100, 50)).save(sink, "JPEG")
    return sink.getvalue()


JPEG = jpeg()


@pytest.fixture(params=KINDS, ids=[kind + "-optional" * more for kind, more in KINDS])
def latents(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A pattern of files: one with rows, one without, and a temporary file of a killed writer."""
    dtype, optional = request.param
    more = {"w_plus_per_step": STEPS, "aligned_jpeg": JPEG, "reconstruction_jpeg": JPEG}
    columns = Columns(N_STYLES, dtype, *[optional] * len(more), identity=optional)
    more["identity"] = IDENTITY
    table = writer(tmp_path, columns=columns)
    write_shard(table, shard(), **(more if optional else {}))
    write_card(open_table(str(tmp_path)))
    (tmp_path / "latents" / ".s-0-00000.parquet.1-ab.tmp").write_bytes(b"half")
    return str(tmp_path / "latents" / "*.parquet")


def has_optional(latents: str) -> bool:
    """Return whether the table has the optional columns."""
    return open_table(str(Path(latents).parents[1])).spec.columns.aligned_jpeg


def number(latents: str) -> type:
    """Return the numpy type of the codes."""
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


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_codes_and_pictures_of_a_folder(
    latents: str, tmp_path: Path, streaming: bool
) -> None:
    root, cache = str(Path(latents).parents[1]), str(tmp_path / "cache")
    rows = datasets.load_dataset(root, split="train", cache_dir=cache, streaming=streaming)
    assert list(rows.features) == pq.read_schema(str(next(Path(root).glob("l*/*.parquet")))).names
    row, tensors = next(iter(rows)), next(iter(rows.with_format("torch")))
    assert (np.array(row["w_plus"]) == CODES[0]).all()
    assert (tensors["w_plus"].shape, tensors["w_plus"].dtype) == ((N_STYLES, 512), torch.float32)
    if has_optional(latents):
        assert {row["aligned_jpeg"].size, row["reconstruction_jpeg"].size} == {(8, 6)}
        assert (np.array(row["w_plus_per_step"]) == STEPS).all()
        assert tensors["w_plus_per_step"].shape == STEPS.shape
        assert tensors["aligned_jpeg"].shape == (3, 6, 8)
        assert (np.array(row["identity"]) == IDENTITY).all()
        assert (tensors["identity"].shape, tensors["identity"].dtype) == ((128,), torch.float32)


def test_the_card_declares_the_types_that_datasets_infers(latents: str, tmp_path: Path) -> None:
    """Other types would convert the columns when they are loaded."""
    schema = pq.read_schema(str(next(Path(latents).parent.glob("*.parquet")))).remove_metadata()
    inferred = datasets.Features.from_arrow_schema(schema)
    root, cache = str(Path(latents).parents[1]), str(tmp_path / "cache")
    named = datasets.load_dataset_builder(root, cache_dir=cache).info.features
    pictures = {name: kind for name, kind in named.items() if isinstance(kind, datasets.Image)}
    assert set(pictures) == {name for name in inferred if name.endswith("_jpeg")}
    assert named == inferred | pictures


@pytest.mark.parametrize("latents", KINDS[1::2], indirect=True)
def test_optional_columns_keep_their_bytes_and_steps(latents: str) -> None:
    names = ["w_plus_per_step", "aligned_jpeg", "identity"]
    frame = pd.read_parquet(Path(latents).parent, columns=names)
    steps = np.stack([np.stack(rows) for rows in frame["w_plus_per_step"][0]])
    assert (steps == STEPS).all()
    assert frame["aligned_jpeg"][0] == JPEG
    scan = pl.read_parquet(latents, columns=names)
    assert scan.schema["w_plus_per_step"] == pl.List(
        pl.Array(pl.Float16 if number(latents) is np.float16 else pl.Float32, (N_STYLES, 512))
    )
    assert scan["aligned_jpeg"][0] == JPEG
    assert (frame["identity"][0] == IDENTITY).all()
    assert (scan["identity"][0].to_numpy() == IDENTITY).all()
    like = f"list_cosine_similarity(identity, {(2 * IDENTITY).tolist()}::FLOAT[]) AS cosine"
    rows = open_table(str(Path(latents).parents[1])).sql(f"SELECT {like} FROM latents")
    assert rows["cosine"].tolist() == pytest.approx([1.0] * len(KEYS), abs=1e-6)
    query = f"SELECT typeof(w_plus_per_step), w_plus_per_step, aligned_jpeg FROM '{latents}'"
    kind, codes, content = duckdb.connect().execute(query).fetchone() or ()
    assert (kind, content) == ("FLOAT[][][]", JPEG)
    assert (np.array(codes) == STEPS).all()


def test_a_pyarrow_dataset_and_a_single_file_have_one_schema(latents: str) -> None:
    files = pa.dataset.dataset(Path(latents).parent)
    single = pq.ParquetFile(str(next(Path(latents).parent.glob("*.parquet"))))
    assert files.schema.equals(single.schema_arrow)
    assert files.count_rows() == len(KEYS)


def test_a_table_of_rejects_alone_reads_as_no_rows(tmp_path: Path) -> None:
    """Hugging Face datasets is not tested: it refuses data sets without rows."""
    table = writer(tmp_path)
    table.write_part(shard(), 0, samples=1, latents=[], rejects=[reject_row("a")])
    folder = tmp_path / "latents"
    pattern = str(folder / "*.parquet")
    assert duckdb.connect().execute(f"SELECT count(*) FROM '{pattern}'").fetchall() == [(0,)]
    assert pd.read_parquet(folder).shape == (0, len(table.spec.columns.latents_schema()))
    assert pl.read_parquet(pattern).schema["w_plus"] == pl.Array(pl.Float16, (N_STYLES, 512))
    assert pq.read_table(folder).num_rows == 0
