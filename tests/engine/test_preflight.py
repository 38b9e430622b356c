"""Promises of what is checked before Ray and PyTorch are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig
from pipeline.engine.plan import make_plan
from pipeline.engine.preflight import check_request
from pipeline.engine.training.crops import plan_crops
from pipeline.engine.training.preflight import check_training
from pipeline.errors import InputError
from pipeline.training.config import TrainConfig

JOBS = {
    "invert_dataset": [
        (["--steps", "none"], "--steps: input should be a valid integer"),
        (["--config", "nowhere.yaml"], "cannot read the config file 'nowhere.yaml'"),
        (["--input", "nowhere"], "nowhere' does not exist"),
        (["--input", "empty"], "holds nothing to read"),
        (["--input", "s3://bucket/photos"], "there are no credentials: set AWS_ACCESS_KEY_ID"),
        (["--output", "s3://bucket/table"], "there are no credentials: set AWS_ACCESS_KEY_ID"),
        (["--output", "photos/table"], "lies inside the input"),
        (["--output", "notes/table"], "cannot be a folder"),
        (["--model", "demon"], "no model is called 'demon'"),
        (["--model", "nowhere/model.pt"], "no model file at nowhere/model.pt"),
        (["--model", "nowhere/bundle"], "no model file at nowhere/bundle/model.json"),
        (["--bootstrap", "nowhere.pt"], "no model file at nowhere.pt"),
        (["--identity", "dlip"], "no identity network is called 'dlip'"),
        (["--identity", "nowhere.pth"], "no identity weights at nowhere.pth"),
        (["--init", "empty"], "cannot start from codes: "),
    ],
    "refine_dataset": [(["--table", "empty"], "empty' is not a table")],
    "train_restyle": [
        (["--rate", "-1"], "--rate: input should be greater than 0"),
        (["--input", "nowhere"], "nowhere' does not exist"),
        (["--model", "nowhere.pt"], "no model file at nowhere.pt"),
        (["--identity-network", "nowhere.pth"], "no identity weights at nowhere.pth"),
        ([], "5 images, of which 256 are held out for validation"),
        (["--held-out", "4", "--batch", "2"], "the other 1 do not fill a batch of 2"),
    ],
    "import_latents": [
        (["--from", "nowhere.npy"], "nowhere.npy' does not exist"),
        (["--from", "empty"], "empty' has no codes"),
        (["--model", "nowhere.pt"], "no model file at nowhere.pt"),
        (["--images", "nowhere"], "nowhere' does not exist"),
        (["--images", "photos", "--identity", "dlip"], "no identity network is called 'dlip'"),
        (["--images", "photos", "--search-pixels", "x"], "--search-pixels: input should be"),
        (["--no-prealigned"], "--prealigned is for images"),
        (["--icc", "ignore"], "--icc is for images"),
        (["--output", "photos"], "nothing is written among other files"),
    ],
    "edit_latents": [
        ([], "empty' is not a table"),
        (["--as", "table"], "--as table writes a folder"),
        (["--fps", "5"], "--fps is for --as video, not for --as grid"),
    ],
    "fit_direction": [
        ([], "empty' is not a table"),
        (["--output", "yaw.txt"], "name it NAME.safetensors"),
        (["--output", "notes/yaw.safetensors"], "cannot be a folder"),
    ],
    "export_table": [
        (["--table", "empty"], "empty' is not a table"),
        (["--to", "out.png"], "the dictionary is a .npy file"),
    ],
    "forget": [
        (["--table", "empty"], "empty' is not a table"),
        (["--where", "true"], "say why with --reason"),
        (["--where", "true", "--like", "photo.jpg"], "choose the images in one way at a time"),
        (["--limit", "3"], "--order and --limit need --where"),
        (["--similar", "0.9"], "--similar and --by need --like"),
    ],
    "render_latents": [
        (["--output", "grid.png"], "empty' is not a table"),
        (["--output", "walk.avi"], "name a grid *.png, an animation .webp, .gif, .mp4"),
        (["--output", "walk.webp", "--columns", "3"], "--columns is for a grid"),
        (["--output", "photos"], "nothing is written among other files"),
    ],
    "convert_model": [
        (["nowhere.pt", "bundle"], "no model file at nowhere.pt"),
        (["demo", "photos"], "nothing is written among other files"),
    ],
    "calibrate_stop": [
        (["--most", "1"], "must be 2 to 100, got 1"),
        (["--calibrate", "nowhere"], "nowhere' does not exist"),
        (["--report", "nowhere"], "nowhere' does not exist"),
        (["--model", "nowhere.pt"], "no model file at nowhere.pt"),
    ],
    "benchmark": [
        (["--input", "nowhere"], "nowhere' does not exist"),
        (["--input", "photos", "--model", "nowhere.pt"], "no model file at nowhere.pt"),
    ],
    "build_demo_model": [
        (["--pairs", "empty"], "holds no pairs-*.tar"),
    ],
    "evaluate": [
        (["--table", "empty"], "empty' is not a table"),
        (["--table", "empty", "--output", "photos"], "nothing is written among other files"),
    ],
    "contact_sheet": [
        (["--table", "empty", "--output", "sheet.png"], "empty' is not a table"),
        (["--table", "empty", "--output", "sheet.gif"], "the sheet is a PNG"),
    ],
    "find_faces": [
        (["--table", "empty", "--clusters", "2"], "empty' is not a table"),
        (["--table", "empty", "--duplicates", "2"], "above -1 and up to 1, not 2"),
        (["--table", "empty", "--clusters", "2", "--output", "rows"], "name it *.csv"),
    ],
    "report": [
        (["--table", "empty"], "empty' is not a table"),
        (["--output", "report.pdf"], "the report is a web page"),
        (["--output", "empty/report.html"], "lies inside the table"),
    ],
    "query_latents": [(["empty", "SELECT 1"], "empty' is not a table")],
    "status": [(["empty"], "empty' is not a table")],
    "build_samples": [(["--wheel", "nowhere.whl"], "the wheel 'nowhere.whl' does not exist")],
}
GIVEN = {
    "invert_dataset": ["--input", "photos", "--output", "out"],
    "refine_dataset": ["--output", "out"],
    "train_restyle": ["--input", "photos", "--output", "out", "--model", "demo"],
    "import_latents": ["--from", "empty", "--model", "demo", "--output", "out"],
    "edit_latents": ["--table", "empty", "--direction", "smile.pt", "--output", "grid.png"],
    "fit_direction": ["--table", "empty", "--column", "yaw", "--output", "yaw.safetensors"],
    "export_table": ["--table", "empty", "--to", "codes.npy"],
    "forget": ["--table", "empty"],
    "render_latents": ["--table", "empty"],
    "calibrate_stop": ["--calibrate", "photos", "--report", "photos", "--output", "out"],
    "evaluate": ["--output", "out"],
    "report": ["--table", "empty", "--output", "report.html"],
}
# Jobs that print an answer, or nothing, and no JSON line.
ANSWERS = {"evaluate", "query_latents", "status", "build_samples"}
Refusals = list[tuple[tuple[str, str], Any]]  # (job, what is said), how it ended
SCRIPT = """
import contextlib, importlib, io, json, sys
results = []
for job, flags in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module("jobs." + job).main(flags)
    slow = [name for name in ("torch", "ray") if name in sys.modules]
    results.append([code, out.getvalue(), err.getvalue(), slow])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """Each wrong request of `JOBS`, one after another in a process of its own, and its end."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    (folder / "notes").write_text("no folder")
    for number in range(5):
        (folder / "photos" / f"{number}.jpg").write_bytes(b"a picture")
    args = [
        (job, GIVEN.get(job, []) + flags, result)
        for job, cases in JOBS.items()
        for flags, result in cases
    ]
    root = Path(__file__).resolve().parents[2]
    requests = json.dumps([[job, flags] for job, flags, _ in args])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, requests],
        cwd=folder,
        env={"PYTHONPATH": str(root), "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "notes", "photos"]
    result = [(job, text) for job, _, text in args]
    return list(zip(result, json.loads(run.stdout), strict=True))


def test_a_wrong_request_needs_no_torch_or_ray(
    refusals: Refusals,
) -> None:
    for (job, result), (code, _, err, slow) in refusals:
        assert (code, slow) == (2, []), (job, err)
        assert result in err


def test_every_job_has_a_case_of_missing_files() -> None:
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    assert {path.stem for path in jobs.glob("[a-z]*.py")} == {*JOBS, "restyle", "tour"}


def test_a_refusal_is_printed_once(
    refusals: Refusals,
) -> None:
    for (job, _), (_, out, err, _) in refusals:
        assert err.count("\n") == 1
        assert "Traceback" not in err
        if job in ANSWERS:
            assert out == ""
            continue
        line = json.loads(out)
        assert line["exit_code"] == 2
        assert err.rstrip("\n").endswith(line["errors"][0])


def listings(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the folders listed from here on."""
    listed: list[str] = []
    scandir = os.scandir

    def record(path: str) -> Any:
        listed.append(str(path))
        return scandir(path)

    patch.setattr(os, "scandir", record)
    return listed


def test_a_started_listing_is_continued(
    config_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, listed = config_of(files_per_shard=1), listings(monkeypatch)
    plan = make_plan(config, shards=check_request(config))
    assert len(list(plan.tasks)) == 4
    assert listed.count(config.input) == 1


def test_a_training_lists_and_counts_its_images_once(
    five_images: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = five_images.model_copy(update={"held_out": 1, "batch": 1, "files_per_shard": 2})
    listed = listings(monkeypatch)
    plan = plan_crops(config, check_training(config))
    assert [len(work.shard.names) for work in plan.tasks] == [2, 2, 2]
    assert listed.count(config.input) == 1


def test_images_in_tars_are_counted_first(five_images: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        tar.add(five_images.input, "images")
    config = five_images.model_copy(
        update={"input": str(tmp_path / "tars"), "held_out": 5, "batch": 1}
    )
    assert len(list(check_training(config))) == 1, "six files: five held out, one to train on"
    with pytest.raises(InputError, match="6 images, of which 6 are held out"):
        check_training(config.model_copy(update={"held_out": 6}))
    with pytest.raises(InputError, match="lower --held-out or --batch"):
        check_training(config.model_copy(update={"limit": 4}))
