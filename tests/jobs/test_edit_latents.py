"""Edits as their users run them, on a table of a small real model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jobs.edit_latents
import jobs.import_latents
from pipeline.config import MODEL_SETTINGS
from pipeline.editing import edit_pictures
from pipeline.editing.directions import Direction, save_direction
from pipeline.editing.w_space import WSpace
from pipeline.interop.pictures import frames_of
from pipeline.models import load_model
from pipeline.table import open_table
from pipeline.table.selection import Selection
from tests.jobs.running import file_bytes

DRAWS = np.random.default_rng(0)
ROW = DRAWS.standard_normal(512).astype(np.float32)
CODES = (DRAWS.standard_normal((5, 10, 512)) * 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: str) -> Path:
    """A folder with a table of five faces in two shards, `table`, and a direction, `smile.npy`."""
    folder = tmp_path_factory.mktemp("edit")
    np.save(folder / "codes.npy", CODES)
    np.save(folder / "smile.npy", ROW)
    model = ("--model", tiny_bundle, "--domain", "faces", "--estimate-latent-avg")
    arguments = ("--from", "codes.npy", *model, "--output", "table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert jobs.import_latents.main([*arguments, "--files-per-shard", "3"]) == 0
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Any:
    """Run the job on the table in an empty folder: exit code, last line of stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, dict[str, Any], str]:
        given = ["--table", folder / "table", "--direction", folder / "smile.npy", *arguments]
        code = jobs.edit_latents.main(list(map(str, given)))
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return call


def test_a_table_holds_the_edited_codes(run: Any, folder: Path, tiny_bundle: str) -> None:
    code, line, said = run(
        *("--as", "table", "--output", "out", "--strength", "-3,0,0.5", "--layers", "4-"),
        *("--part-size", "2", "--identity", "none", "--where", "key <> '000004'"),
        *("--model", os.path.relpath(tiny_bundle)),
    )
    assert (code, line["faces"], line["shards"]) == (0, 12, 6)
    assert "does not say which model it is for" in said
    table, source = open_table("out"), open_table(str(folder / "table"))
    table.verify()
    # The edited table's model is loaded as the source's, from any folder.
    assert {name: table.spec.config[name] for name in ("model", *MODEL_SETTINGS)} == {
        "model": source.spec.config["model"],
        "domain": "faces",
        "encoder_type": None,
        "estimate_latent_avg": True,
    }
    rows = table.sql("SELECT * FROM latents ORDER BY refined_from, strength[1]")
    assert rows.direction.map(list).tolist() == [["smile"]] * 12
    assert rows.strength.map(list).tolist() == [[-3.0], [0.0], [0.5]] * 4
    assert set(rows.method) == {"edit"}
    originals = source.w_plus(list(rows.refined_from))
    expected = originals.copy()
    expected[:, 4:] += np.repeat([-3, 0, 0.5] * 4, 512 * 6).reshape(12, 6, 512) * ROW
    stored = table.w_plus(list(rows.image_id))
    np.testing.assert_array_equal(stored, expected.astype(np.float16).astype(np.float32))
    # Metrics compare with the unedited picture: none of it changes at strength 0.
    assert rows.l2[rows.strength.str[0] == 0].max() == 0
    assert rows.l2[rows.strength.str[0] != 0].min() > 0
    assert rows.lpips.notna().all()


def test_a_stopped_edit_is_completed_to_the_same_bytes(run: Any) -> None:
    flags = ("--as", "table", "--strength", "1,2", "--part-size", "2", "--identity", "none")
    assert run(*flags, "--output", "out")[0] == 0
    before = {**file_bytes(Path("out"), "latents"), **file_bytes(Path("out"), "_shards")}
    shutil.copytree("out", "again")
    for name in ("_shards/codes-00000-e0.json", "latents/codes-00000-e0-00001.parquet"):
        Path("again", name).unlink()
    assert run(*flags, "--output", "again")[0] == 0
    after = {**file_bytes(Path("again"), "latents"), **file_bytes(Path("again"), "_shards")}
    assert after == before
    code, line, _ = run(*flags, "--output", "again", "--limit", "2")
    assert code == 2
    assert "--limit: null in the table, 2 asked for" in line["errors"][0]


def test_a_limit_chooses_faces_of_the_whole_table(run: Any) -> None:
    flags = ("--as", "table", "--strength", "1", "--identity", "none", "--output", "out")
    code, line, _ = run(*flags, "--order", "key DESC", "--limit", "3")
    assert (code, line["faces"]) == (0, 3)
    rows = open_table("out").sql("SELECT shard, key FROM latents ORDER BY key")
    assert rows.key.tolist() == ["000002", "000003", "000004"]
    assert rows.shard.tolist() == ["codes-00000", "codes-00001", "codes-00001"]


def test_files_have_the_rendered_edit(run: Any, folder: Path, tiny_bundle: str) -> None:
    code, line, _ = run("--as", "images", "--output", "out", "--strength", "-2,2")
    assert (code, line["written"]) == (0, 10)
    source = open_table(str(folder / "table"))
    edited = source.w_plus(["codes-00001/000003#0"]) + 2 * ROW
    expected = frames_of(load_model(tiny_bundle), edited)[0]
    with Image.open("out/smile+2/000003.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_a_grid_has_faces_as_rows(run: Any) -> None:
    code, line, _ = run("--output", "grid.png", "--limit", "2", "--size", "64")
    assert (code, line["faces"], line["columns"]) == (0, 2, 3)
    with Image.open("grid.png") as grid:
        assert grid.width == 2 * 16 + 3 * 64 + 2 * 6
        assert grid.height > 2 * 64


def test_a_video_ends_as_it_begins(run: Any) -> None:
    code, line, _ = run("--output", "out.gif", "--limit", "3", "--strength", "0,2", "--frames", "4")
    assert (code, line["faces"], line["frames"]) == (0, 3, 8)
    with Image.open("out.gif") as video:
        assert (video.n_frames, video.size) == (8, (128, 128))


def test_too_many_faces_of_a_video_are_not_read(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("codes were read")

    monkeypatch.setattr(edit_pictures, "MAX_TILES", 2)
    monkeypatch.setattr(Selection, "code_batches", fail)
    code, line, _ = run("--output", "out.gif", "--limit", "3", "--strength", "0,2")
    assert code == 2
    assert "a video shows at most 2 faces, not 3" in line["errors"][0]


def test_a_direction_of_another_model_is_refused(run: Any, tmp_path: Path) -> None:
    other = WSpace("cars", "a" * 64, "b" * 64)
    path = tmp_path / "wheel.safetensors"
    path.write_bytes(save_direction(Direction("wheel", ROW[None], other)))
    code, line, _ = run("--direction", path, "--output", "grid.png")
    assert code == 2
    assert "'wheel' is for the W space of the model 'cars'" in line["errors"][0]
    assert not Path("grid.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--output", "out"), "say with --as what to write"),
        (("--output", "out.png", "--as", "table"), "--as table writes a folder"),
        (("--output", "out", "--as", "grid"), "a grid is one file: name it *.png"),
        (("--output", "x.png", "--fps", "5"), "--fps is for --as video, not for --as grid"),
        (("--output", "x.png", "--strength", "a"), "expected numbers separated by commas"),
        (("--output", "x.gif", "--strength", "1"), "at least two strengths"),
        (("--output", "x.png", "--where", "false"), "selects no face"),
        (("--output", "x.png", "--size", "4000"), "more than 80,000,000"),
    ],
)
def test_a_wrong_request_is_one_line(run: Any, flags: tuple[str, ...], said: str) -> None:
    code, line, error = run(*flags)
    assert (code, error.count("\n")) == (2, 1)
    assert said in line["errors"][0]
