"""A table becomes a Hugging Face dataset that `datasets` loads with pictures and codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.interop.code_files import open_codes
from pipeline.interop.file_series import Series
from pipeline.interop.hub_files import export_hub
from pipeline.table import Columns, Table
from pipeline.table.selection import Selection
from tests.interop.tables import table_of
from tests.table.rows import N_STYLES, code, face_row

KEYS = ("a/1.jpg", "b/1.jpg", "c.png")


def picture(kind: str, level: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 6), (level, 100, 50)).save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    crops = [picture("JPEG"), None, picture("JPEG")]
    rows = [face_row(key, aligned_jpeg=crop) for key, crop in zip(KEYS, crops, strict=True)]
    columns = Columns(N_STYLES, aligned_jpeg=True)
    table: Table = table_of(tmp_path / "table", *rows, columns=columns)
    return table


def export(table: Table, out: Path, render: Any = None) -> dict[str, Any]:
    series = Series.of(Selection(table), "huggingface", 2, pictures=[render is not None])
    return export_hub(series, str(out), render)


def render(codes: np.ndarray) -> list[bytes]:
    return [picture("PNG", index) for index in range(len(codes))]


def test_datasets_loads_pictures_and_codes(table: Table, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    counts = {"written": 3, "files": 2, "new_files": 2, "card": True}
    assert export(table, out, render) == counts
    assert export(table, out, render) == {**counts, "new_files": 0}
    rows = datasets.load_dataset(str(out), split="train", cache_dir=cache)
    assert [row and row.size for row in rows["aligned_jpeg"]] == [(8, 6), None, (8, 6)]
    assert rows[2]["reconstruction"].size == (8, 6)
    expected = np.stack([code(key) for key in KEYS])
    assert (rows.with_format("numpy")[:]["w_plus"] == expected).all()
    file = str(out / "data" / "train-00000-of-00002.parquet")
    single = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    assert single.features == rows.features, "the file says it too"
    stored = pq.read_table(file)["aligned_jpeg"][0].as_py()
    assert stored == {"bytes": picture("JPEG"), "path": "1.jpg"}
    assert set(open_codes(str(out)).names) == {f"{key}#0" for key in KEYS}


def test_card_states_features_sizes_and_licence(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    info = facts["dataset_info"]
    assert info["splits"][0]["num_examples"] == 3
    data = list((tmp_path / "data").iterdir())
    assert info["download_size"] == sum(path.stat().st_size for path in data)
    assert {"name": "aligned_jpeg", "dtype": "image"} in info["features"]
    assert facts["size_categories"] == ["n<1K"]
    assert "The model's licence: MIT." in text
    metadata = pq.read_schema(data[0]).metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["l2"]["dtype"] == "float32"


def test_an_edited_card_stays(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    card.write_text("mine")
    assert export(table, tmp_path / "out")["card"] is False
    assert card.read_text() == "mine"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="is not the card of an export"):
        export(table, tmp_path / "new")
