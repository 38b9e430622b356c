"""A table becomes WebDataset shards that `webdataset` and this library read."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from pipeline.errors import ConfigError, InputError
from pipeline.interop.code_files import open_codes
from pipeline.interop.exporting import NamedSelection, Naming, code_file
from pipeline.interop.file_names import from_sample_key, to_sample_key
from pipeline.interop.file_series import Series
from pipeline.interop.tar_shards import PLAN_NAME, export_tars
from pipeline.storage import ReadOptions, list_shards, read_samples
from pipeline.table import Columns, Table
from tests.interop.tables import table_of
from tests.interop.test_hub_files import picture, render
from tests.table.rows import N_STYLES, code, face_row

KEYS = ("a/1.jpg", "a/2.x.jpg", "../é.jpg", "a/.h", "a/%2E.png")
NAMES = ("1", "2.x", "é", ".h", "%2E")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rows = [face_row(key, aligned_jpeg=picture("JPEG")) for key in KEYS]
    columns = Columns(N_STYLES, aligned_jpeg=True)
    table: Table = table_of(tmp_path / "table", *rows, columns=columns, part_size=10)
    return table


def export(table: Table, out: Path, naming: Naming = "basename", **form: Any) -> dict[str, int]:
    selection = NamedSelection(table, naming=naming)
    settings = [naming, *map(str, form)]
    series = Series.of(selection, "webdataset", 2, pictures=settings)
    return export_tars(series, selection, str(out), **form)


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("naming", ["basename", "id"])
def test_webdataset_reads_samples_with_their_row(
    table: Table, tmp_path: Path, naming: Naming
) -> None:
    out = tmp_path / "out"
    assert export(table, out, naming) == {"written": 5, "files": 3, "new_files": 3}
    files = sorted(map(str, out.glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    gc.collect()
    assert [sample["json"]["key"] for sample in samples] == list(KEYS)
    for sample, key, name in zip(samples, KEYS, NAMES, strict=True):
        expected = f"s-0/{key}#0" if naming == "id" else name
        assert from_sample_key(sample["__key__"]) == expected
        assert np.array_equal(sample["npy"], code(key))
        assert sample["jpg"].size == (8, 6)
        assert sample["json"]["table"] == table.store.root
        assert sample["json"]["l2"] == 0.125


def test_our_reader_takes_the_pictures_of_the_shards(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out", "id")
    (tmp_path / "out" / PLAN_NAME).unlink()
    images = [
        sample.content
        for shard in list_shards(str(tmp_path / "out"))
        for sample in read_samples(shard, None, ReadOptions())
    ]
    assert images == [picture("JPEG")] * len(KEYS)


def test_codes_of_shards_come_back_with_their_faces(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out", form="pt", render=render)
    with tarfile.open(tmp_path / "out" / "shard-00000-of-00003.tar") as archive:
        suffixes = {name.split(".", 1)[1] for name in archive.getnames()}
        assert suffixes == {"jpg", "pth", "json", "reconstruction.png"}
        content = io.BytesIO(archive.extractfile("1.pth").read())  # type: ignore[union-attr]
    assert torch.load(content, weights_only=True).dtype == torch.float32
    codes = open_codes(str(tmp_path / "out"))
    lineage = codes.origin
    assert lineage is not None
    assert lineage.image_ids == {f"{key}#0": f"s-0/{key}#0" for key in KEYS}
    for key in KEYS:
        np.testing.assert_array_equal(codes.read(f"{key}#0")[0], code(key))


def test_shards_are_continued_and_never_replaced(table: Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(table, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "shard-00001-of-00003.tar").unlink()
    assert export(table, out)["new_files"] == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ConfigError, match="it has other pictures or names"):
        export(table, out, "id")
    (out / PLAN_NAME).unlink()
    with pytest.raises(ConfigError, match="holds shards of another program"):
        export(table, out)


def test_damaged_shards_are_refused_in_one_line(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path / "out")
    shard = tmp_path / "out" / "shard-00000-of-00003.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(InputError, match="is damaged"):
        open_codes(str(shard))
    with tarfile.open(shard, "w") as archive:
        info = tarfile.TarInfo("a.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(json.dumps({}).encode()))
    with pytest.raises(InputError, match=r"has no codes: expected \.npy or \.pth"):
        open_codes(str(shard))


def test_json_of_many_samples_is_not_kept_in_memory(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(50):
            facts = {"image_id": f"s/{number}#0", "caption": "x" * 200_000}
            for name, content in (
                (f"{number}.json", json.dumps(facts).encode()),
                (f"{number}.npy", code_file(code(str(number)), "npy")),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    tracemalloc.start()
    try:
        codes = open_codes(str(tmp_path / "a.tar"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000
    assert codes.origin is not None
    assert codes.origin.image_ids["7"] == "s/7#0"


@pytest.mark.parametrize("name", [*KEYS, "", "a/", "%", "/x", "a//b", "x.y.z"])
def test_sample_keys_are_safe_and_reversible(name: str) -> None:
    key = to_sample_key(name)
    assert from_sample_key(key) == name
    assert "." not in key.rsplit("/", 1)[-1]
    assert not key.startswith("/")
    assert ".." not in key.split("/")
