"""Targets of rows without kept crops come from the sources, or are counted with the reason."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.reports.targets import Targets
from pipeline.storage import Shard, Store, list_shards, read_samples
from pipeline.table import Columns, Table, open_table
from tests.table.rows import N_STYLES, face_row, writer

SETTINGS = {"alignment": {"prealigned": True, "output_size": [16, 16]}}
COLOURS = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200)}


def png(colour: tuple[int, int, int], side: int = 40) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(sink, "PNG")
    return sink.getvalue()


def write_input(root: Path, kind: str) -> str:
    root.mkdir()
    if kind == "folder":
        for name, colour in COLOURS.items():
            (root / f"{name}.png").write_bytes(png(colour))
        return str(root)
    path = root / f"faces.{kind}"
    if kind == "parquet":
        images = [png(colour) for colour in COLOURS.values()]
        pq.write_table(pa.table({"key": [*COLOURS], "image": images}), path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, colour in COLOURS.items():
                archive.writestr(f"{name}.png", png(colour))
    else:
        write_tar(path, COLOURS)
    return str(path)


def write_tar(path: Path, colours: dict[str, tuple[int, int, int]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, colour in colours.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(png(colour))
            tar.addfile(info, io.BytesIO(png(colour)))


def table_of_input(folder: Path, uri: str, *, committed: bool = True) -> Table:
    """Write a table with one row per image of the input."""
    (shard,) = list_shards(uri)
    layout = {"input": uri, "files_per_shard": 1024}
    table = writer(folder / "table", settings=SETTINGS, layout=layout)
    rows = [_row(sample) for sample in read_samples(shard)]
    part = table.write_part(shard, 0, samples=len(rows), latents=rows, rejects=[])
    if committed:
        table.commit_shard(shard, [part])
    return open_table(str(folder / "table"))


def _row(sample: Any, **changes: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(sample.content).hexdigest()
    given = {"source_uri": sample.uri, "source_sha256": sha256, "align_quad": None, **changes}
    return face_row(sample.key, **given)


def crops(targets: Targets) -> dict[str, tuple[int, ...]]:
    """Return the middle pixel of each target by the first letter of its key."""
    rows = targets.table.arrow(f"SELECT {targets.columns} FROM latents").to_pylist()
    key = {row["image_id"]: row["key"][0] for row in rows}
    found = targets.crops(rows)
    assert all(crop.shape == (16, 16, 3) for crop in found.values())
    return {key[image]: tuple(map(int, crop[8, 8])) for image, crop in found.items()}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "parquet"])
@pytest.mark.parametrize("committed", [True, False])
def test_targets_are_read_from_the_sources(tmp_path: Path, kind: str, committed: bool) -> None:
    uri = write_input(tmp_path / "in", kind)
    targets = Targets(table_of_input(tmp_path, uri, committed=committed))
    assert crops(targets) == COLOURS
    assert targets.summary() == ""


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_targets_are_read_from_a_bucket(tmp_path: Path, s3: Any, kind: str) -> None:
    local = Path(write_input(tmp_path / "in", kind))
    for path in local.iterdir() if local.is_dir() else [local]:
        Store(f"{s3.uri}/in").put(path.name, path.read_bytes())
    table = table_of_input(tmp_path, f"{s3.uri}/in")
    Store(f"{s3.uri}/in").remove("b.png")
    targets = Targets(table)
    expected = {name: colour for name, colour in COLOURS.items() if kind == "tar" or name != "b"}
    assert crops(targets) == expected
    assert targets.not_found == ({} if kind == "tar" else {"missing": 1})


def test_changed_and_missing_files_are_counted(tmp_path: Path) -> None:
    uri = write_input(tmp_path / "in", "folder")
    targets = Targets(table_of_input(tmp_path, uri))
    (tmp_path / "in" / "a.png").write_bytes(png((9, 9, 9)))
    (tmp_path / "in" / "b.png").unlink()
    assert crops(targets) == {"c": COLOURS["c"]}
    assert targets.not_found == {"changed": 1, "missing": 1}
    assert "1 (changed: the source is another image now, such as 'files-00000/a" in (
        targets.summary()
    )


def test_missing_archive_leaves_all_its_faces_without_target(tmp_path: Path) -> None:
    uri = write_input(tmp_path / "in", "tar")
    targets = Targets(table_of_input(tmp_path, uri))
    Path(uri).unlink()
    assert crops(targets) == {}
    assert targets.not_found == {"missing": 3}


def test_rewritten_archive_serves_unchanged_images(tmp_path: Path) -> None:
    uri = write_input(tmp_path / "in", "tar")
    targets = Targets(table_of_input(tmp_path, uri))
    write_tar(Path(uri), {"a": COLOURS["a"], "b": (1, 1, 1)})
    assert crops(targets) == {"a": COLOURS["a"]}
    assert targets.not_found == {"changed": 1, "missing": 1}


def test_kept_crop_needs_no_source(tmp_path: Path) -> None:
    columns = Columns(N_STYLES, aligned_jpeg=True)
    table = writer(tmp_path / "table", settings=SETTINGS, columns=columns)
    shard = Shard("s-0", "/nowhere/s-0.tar", "tar", 1, "e")
    rows = [face_row("a", aligned_jpeg=png((200, 0, 0), 16))]
    table.write_part(shard, 0, samples=1, latents=rows, rejects=[])
    targets = Targets(open_table(str(tmp_path / "table")))
    assert crops(targets) == {"a": (200, 0, 0)}


def test_codes_without_images_have_no_target(tmp_path: Path) -> None:
    table = writer(tmp_path / "table", settings={"model": "m"})
    shard = Shard("codes-00000", "/nowhere", "folder", 1, "e")
    rows = [face_row("a", source_sha256=None)]
    table.write_part(shard, 0, samples=1, latents=rows, rejects=[])
    targets = Targets(open_table(str(tmp_path / "table")))
    assert crops(targets) == {}
    assert targets.not_found == {"unknown": 1}
    assert "made from codes without images" in targets.summary()
