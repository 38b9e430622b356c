"""Check that jobs leave existing files in an output folder alone."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import jobs.export_table
import jobs.import_latents
from pipeline.interop.pickled_codes import latents_file
from pipeline.storage import check_output
from pipeline.training.resume_check import TRAINING_OUTPUT
from tests.jobs.running import file_bytes
from tests.table.rows import shard, write_shard, writer

N_STYLES = 10  # of the tiny model
WRITING = [
    ("invert_dataset", "--input", "{photos}", "--output"),
    ("invert_dataset", "--dry-run", "--input", "{photos}", "--output"),
    ("import_latents", "--from", "latents.npy", "--model", "demo", "--output"),
    ("export_table", "--table", "table", "--as", "codes", "--to"),
    ("export_table", "--table", "table", "--as", "images", "--to"),
    ("export_table", "--table", "table", "--as", "parquet", "--to"),
    ("export_table", "--table", "table", "--as", "huggingface", "--to"),
    ("export_table", "--table", "table", "--as", "webdataset", "--to"),
    ("evaluate", "--table", "table", "--output"),
    ("calibrate_stop", "--calibrate", "{photos}", "--report", "{photos}", "--output"),
    ("convert_model", "demo"),
    ("train_restyle", "--input", "{photos}", "--model", "demo", "--output"),
]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a user's files, of names that jobs of ours write too."""
    folder = tmp_path / "own"
    for name in ("README.md", "1.jpg", "comparison.md", "latents/1-00000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one file, which no refused job opens."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"never opened")
    return tmp_path / "photos"


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A `latents.npy` of one image."""
    codes = np.zeros((1, N_STYLES, 512), np.float32)
    path = tmp_path / "latents.npy"
    path.write_bytes(latents_file({"1.jpg": codes}))
    return path


@pytest.mark.parametrize("command", WRITING, ids=lambda command: "-".join(command[:2]))
def test_every_job_refuses_a_folder_of_other_files(
    command: tuple[str, ...], own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = importlib.import_module(f"jobs.{command[0]}")
    args = [part.format(photos=photos) for part in command[1:]]
    assert job.main([*args, str(own)]) == 2
    said = capsys.readouterr().err
    assert f"the output '{own}' holds '1.jpg', 'README.md', 'comparison.md' and more" in said
    assert "choose a folder that is new or empty, or" in said
    assert set(file_bytes(own).values()) == {b"mine"}
    assert len(file_bytes(own)) == 4


def test_a_table_without_its_spec_is_recognized(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(writer(tmp_path / "table"), shard())
    (tmp_path / "table" / "_table.json").unlink()
    before = file_bytes(tmp_path / "table")
    job = importlib.import_module("jobs.invert_dataset")
    assert job.main(["--input", str(photos), "--output", str(tmp_path / "table")]) == 2
    assert "is a table that has lost its _table.json" in capsys.readouterr().err
    assert file_bytes(tmp_path / "table") == before


def test_an_import_says_once_that_a_readme_stays(
    latents: Path, tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "table" / "README.md"
    args = ["--from", str(latents), "--model", tiny_bundle, "--output", str(tmp_path / "table")]
    assert jobs.import_latents.main(args) == 0
    assert "README.md' is not the card" not in capsys.readouterr().err
    readme.write_bytes(b"mine")
    assert jobs.import_latents.main(args) == 0
    said = capsys.readouterr()
    assert said.err.count("README.md' is not the card that this job writes") == 1
    assert json.loads(said.out.splitlines()[-1])["faces"] == 1
    assert readme.read_bytes() == b"mine"


def test_an_export_replaces_no_file_of_another_content(
    latents: Path, tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, codes = tmp_path / "table", tmp_path / "codes"
    args = ["--from", str(latents), "--model", tiny_bundle, "--output", str(table)]
    assert jobs.import_latents.main(args) == 0
    args = ["--table", str(table), "--to", str(codes), "--as", "codes"]
    assert jobs.export_table.main(args) == 0
    exported = (codes / "1.npy").read_bytes()
    assert jobs.export_table.main(args) == 0, "the same again"
    sink = io.BytesIO()
    np.save(sink, np.ones(3))
    (codes / "1.npy").write_bytes(sink.getvalue())
    capsys.readouterr()
    assert jobs.export_table.main(args) == 2
    assert "1.npy' exists with other content" in capsys.readouterr().err
    assert (codes / "1.npy").read_bytes() == sink.getvalue() != exported


def test_only_a_bundle_is_overwritten(
    tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = importlib.import_module("jobs.convert_model")
    folder = tmp_path / "bundle"
    assert job.main([tiny_bundle, str(folder)]) == 0
    assert job.main([tiny_bundle, str(folder)]) == 0
    (folder / "model.json").unlink()
    assert job.main([tiny_bundle, str(folder)]) == 0, "as after a conversion that was stopped"
    (folder / "model.json").unlink()
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    capsys.readouterr()
    assert job.main([tiny_bundle, str(folder)]) == 2
    assert "holds 'model.safetensors', and is not a model bundle" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == b"\x02\0\0\0\0\0\0\0{}"


@pytest.mark.parametrize("left", ["_train.json", "crops/0123456789ab/index.json"])
def test_a_started_training_may_continue(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_bytes(b"{}")
    check_output(str(tmp_path), TRAINING_OUTPUT)


@pytest.mark.parametrize(
    "command",
    [
        ("contact_sheet", "sheet.png"),
        ("edit_latents", "grid.png", "--direction", "smile"),
        ("evaluate", "report", "--no-plots"),
        ("export_table", "latents.npy"),
        ("find_faces", "rows.csv", "--duplicates", "0.9"),
        ("fit_direction", "yaw.safetensors", "--column", "yaw"),
        ("render_latents", "grid.png"),
        ("report", "report.html"),
    ],
    ids=lambda command: command[0],
)
def test_no_job_writes_into_the_table_it_reads(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = importlib.import_module(f"jobs.{command[0]}")
    output = f"{tmp_path}/table/{command[1]}"
    assert job.main(["--table", f"{tmp_path}/table", "--output", output, *command[2:]]) == 2
    assert "lies inside the table" in capsys.readouterr().err
