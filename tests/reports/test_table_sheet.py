import io
import json

import numpy as np
import pytest
from PIL import Image

from jobs import contact_sheet as job
from jobs import render_latents
from pipeline.alignment import AlignmentSettings
from pipeline.alignment.recrop import crop_again
from pipeline.errors import ConfigError, ModelError, RequestError
from pipeline.reports.contact_sheet import EMPTY
from pipeline.reports.table_sheet import table_sheet
from pipeline.storage import Store
from pipeline.table import Table
from pipeline.table.selection import Selection

KEPT = {"keep_steps": True, "keep_crops": True}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def sheet_of(table: Table, **chosen) -> np.ndarray:
    return pixels(table_sheet(Selection(table, **chosen)).picture)


def test_sheet_has_one_row_per_selected_face(make_table):
    table = make_table(**KEPT)
    both = sheet_of(table)
    single = sheet_of(table, where="key = '0002.jpg'")
    assert sheet_of(table, limit=1).shape == single.shape
    assert single.shape[1] == both.shape[1]
    assert single.shape[0] < both.shape[0]


def test_first_picture_is_the_stored_crop(make_table):
    table = make_table(**KEPT)
    crop = table.sql("SELECT aligned_jpeg FROM latents ORDER BY image_id LIMIT 1").iloc[0, 0]
    assert shown_first(sheet_of(table), np.asarray(Image.open(io.BytesIO(crop)))) < 1


def shown_first(sheet: np.ndarray, crop: np.ndarray) -> float:
    """Return how much the target of the sheet's first face differs from `crop`."""
    target = Image.fromarray(crop).resize((144, 144), Image.Resampling.LANCZOS)
    first = sheet[46 : 46 + 144, 20 : 20 + 144]
    return float(np.abs(first - np.asarray(target).astype(int)).mean())


def test_table_without_crops_and_steps_is_shown(make_table, tmp_path):
    table = make_table()
    sheet = table_sheet(Selection(table, order="key DESC"))
    (row,) = Selection(table, "key = '0002.jpg'").rows("align_quad")
    photo = (tmp_path / "images" / "0002.jpg").read_bytes()
    crop = crop_again(photo, AlignmentSettings(output_size=(64, 64)), np.array(row["align_quad"]))
    assert shown_first(pixels(sheet.picture), crop) == 0
    assert pixels(sheet.picture).shape[1] == 2 * 20 + 3 * (144 + 8) - 8, "target, average, best"
    assert (sheet.faces, sheet.targets.summary()) == (2, "")


def test_missing_source_leaves_an_empty_cell(make_table, tmp_path, capsys):
    table = make_table()
    (tmp_path / "images" / "0001.jpg").unlink()
    output = tmp_path / "sheet.png"
    assert job.main(["--table", table.store.root, "--output", str(output)]) == 0
    result = capsys.readouterr()
    assert json.loads(result.out) == {
        "output": str(output),
        "faces": 2,
        "no_target": {"missing": 1},
    }
    assert "faces without a target: 1 (missing: " in result.err
    first = np.asarray(Image.open(output))[46 : 46 + 144, 20 : 20 + 144]
    assert (first == EMPTY).all(axis=2).mean() > 0.9


def test_bootstrapped_table_has_the_first_models_steps(make_table, tiny_bundle):
    table = make_table(**KEPT, bootstrap=tiny_bundle)
    assert sheet_of(table).shape[1] == 2 * 20 + (3 + 2) * (144 + 8) - 8


@pytest.mark.parametrize("bootstrapped", [{}, {"bootstrap": "demo"}])
def test_faces_may_have_different_numbers_of_steps(make_table, bootstrapped):
    auto = {"model": "demo", "steps": "auto", "max_steps": 4, "stop_gain": 0.0005}
    table = make_table(**KEPT, **auto, **bootstrapped)
    steps = table.sql("SELECT steps FROM latents").steps
    assert steps.nunique() > 1
    columns = 2 + len(bootstrapped) + steps.max()
    assert sheet_of(table).shape[1] == 2 * 20 + columns * (144 + 8) - 8


@pytest.mark.parametrize("changed", ["model", "bootstrap"])
def test_model_with_changed_weights_is_refused(make_table, tiny_bundle, changed):
    table = make_table(**KEPT, bootstrap=tiny_bundle)
    settings = table.spec.settings
    target = settings if changed == "model" else settings["method"]
    target[changed] = "0" * 64
    with pytest.raises(ModelError, match="belong to another model than"):
        sheet_of(table)


def test_too_many_faces_for_a_sheet_are_refused(make_table, monkeypatch):
    monkeypatch.setattr("pipeline.reports.table_sheet.MAX_FACES", 1)
    with pytest.raises(ConfigError, match="at most 1 faces, not 2: choose with --limit"):
        sheet_of(make_table())


def test_condition_without_faces_is_named(make_table):
    with pytest.raises(RequestError, match=r'^--where "l2 < 0" selects no face of the table'):
        sheet_of(make_table(**KEPT), where="l2 < 0")


def test_job_writes_a_png_and_refuses_missing_tables(make_table, tmp_path, capsys):
    table = make_table(**KEPT)
    output = tmp_path / "new" / "sheet.png"
    assert job.main(["--table", table.store.root, "--output", str(output), "--limit", "1"]) == 0
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert job.main(["--table", str(tmp_path / "images"), "--output", str(output)]) == 2
    assert "is not a table" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet.xyz", "sheet"])
def test_sheet_must_have_a_png_name(tmp_path, capsys, name):
    assert job.main(["--table", "t", "--output", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith(f"{name}: the sheet is a PNG, name it *.png\n")


def test_jobs_write_their_pictures_to_the_uri(make_table, tmp_path, monkeypatch, s3):
    monkeypatch.chdir(tmp_path)
    table = make_table(**KEPT).store.root
    there = {path for path in tmp_path.rglob("*") if path.parent == tmp_path}
    args = ["--table", table, "--limit", "1", "--output", f"{s3.uri}/sheets/x.png"]
    assert job.main(args) == 0
    assert Store(s3.uri).get("sheets/x.png")[:8] == b"\x89PNG\r\n\x1a\n"
    walk = ["--table", table, "--frames", "2", "--output", f"{s3.uri}/sheets/x.gif"]
    assert render_latents.main(walk) == 0
    assert Store(s3.uri).get("sheets/x.gif")[:6] == b"GIF89a"
    assert {path for path in tmp_path.rglob("*") if path.parent == tmp_path} == there


def test_unwritable_folder_gives_one_clear_line(make_table, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    table = make_table(**KEPT).store.root
    for output in ("/proc/x/sheet.png", str(tmp_path / "file" / "sheet.png")):
        assert job.main(["--table", table, "--output", output]) == 2
        said = capsys.readouterr().err
        assert said.startswith("ConfigError: the output '")
        assert said.count("\n") == 1
