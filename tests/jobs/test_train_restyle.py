"""Training as its users run it: killed in the middle, run again, compared with an unbroken run."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import train_restyle as job
from pipeline.metrics.moco import ResNet50
from pipeline.models import load_model
from pipeline.storage import Store
from tests.conftest import Bucket
from tests.jobs.running import PATIENCE_S, Ended, Job

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]
SETTINGS = (
    "--prealigned", "--held-out", "8", "--batch", "4", "--steps", "2", "--images", "400",
    "--report-every", "20", "--save-every", "40", "--optimiser", "adam", "--rate", "0.002",
    "--lpips", "0", "--identity", "0", "--no-tensorboard", "--align-workers", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """Results of one training, run twice: uninterrupted, and killed in the middle."""

    whole: Ended
    resumed: Ended
    lines: dict[str, list[dict[str, Any]]]
    lines_at_kill: int
    folder: Path


def write_images(folder: Path) -> Path:
    """40 smooth pictures of 64 px."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


def reports(run: Path) -> list[dict[str, Any]]:
    """Return the log's lines without their seconds."""
    path = run / "encoder.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{**json.loads(line), "seconds": 0, "total_seconds": 0} for line in lines]


def wait_for_reports(started: Job, run: Path, lines: int) -> None:
    """Wait until the log of a training has `lines`; it must run until then."""
    deadline = time.monotonic() + PATIENCE_S
    while len(reports(run)) < lines:
        assert started.process.poll() is None, started.err.read_text()
        assert time.monotonic() < deadline, started.err.read_text()
        time.sleep(0.05)


def kill_after(started: Job, run: Path, lines: int) -> int:
    """kill -9 to every process of the job once its log has `lines`; how many it had then."""
    wait_for_reports(started, run, lines)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{started.mark}=".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile, or is not ours
            continue
    started.process.wait()
    return len(reports(run))


@pytest.fixture(scope="module")
def runs(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("train")
    images = write_images(folder / "images")

    def start(run: str) -> Job:
        where = ("--input", images, "--output", run, "--model", tiny_bundle)
        return Job(folder, *where, *SETTINGS, job="train_restyle")

    killed = start("killed")
    lines_at_kill = kill_after(killed, folder / "killed", 3)
    resumed = start("killed").ended()
    whole = start("whole").ended()
    lines = {run: reports(folder / run) for run in ("whole", "killed")}
    return Runs(whole, resumed, lines, lines_at_kill, folder)


def test_it_was_killed_in_the_middle(runs: Runs) -> None:
    assert 3 <= runs.lines_at_kill < 20


def test_a_resumed_run_has_the_same_loss_curve(runs: Runs) -> None:
    assert runs.whole.code == 0, runs.whole.err
    assert runs.resumed.code == 0, runs.resumed.err
    assert [line["images"] for line in runs.lines["whole"]] == list(range(20, 401, 20))
    assert runs.lines["killed"] == runs.lines["whole"]


def test_the_cut_crops_are_reported_before_the_log(runs: Runs) -> None:
    first, *_, second, third, _ = map(json.loads, runs.whole.out.splitlines())
    assert first == {
        "event": "training_begins",
        "samples": 40,
        "rejects_by_reason": {},
        "crops": 40,
        "held_out": 8,
        "trained_on": 32,
    }
    assert (second["images"], third["images"]) == (380, 400)


def test_both_runs_end_with_the_same_model(runs: Runs) -> None:
    first, second = (load_model(str(runs.folder / run / "bundle")) for run in ("whole", "killed"))
    assert first.fingerprint == second.fingerprint
    assert runs.whole.line["best_images"] > 0


def test_the_model_learnt(runs: Runs) -> None:
    curve = [line["held_out_l2"][-1] for line in runs.lines["whole"]]
    assert curve[-1] < curve[0]


def test_crops_are_cut_once(runs: Runs) -> None:
    (folder,) = (runs.folder / "killed" / "crops").iterdir()
    index = json.loads((folder / "index.json").read_text())
    assert sum(count for _, count in index["files"]) == index["samples"] == 40


def test_another_training_does_not_use_the_checkpoint(
    runs: Runs, tiny_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.folder / "whole"
    where = ["--input", str(runs.folder / "images"), "--output", str(run), "--model", tiny_bundle]
    assert job.main([*where, *SETTINGS, "--images", "440", "--seed", "1", "--steps", "3"]) == 2
    out, err = capsys.readouterr()
    assert "seed: 0 at the start, 1 now" in err
    assert "steps: 2 at the start, 3 now" in err
    assert json.loads(out)["exit_code"] == 2
    assert "choose another output or the same settings" in json.loads(out)["errors"][0]
    assert reports(run) == runs.lines["whole"]


def test_two_workers_train_between_buckets_with_moco(
    s3: Bucket, tiny_bundle: str, tmp_path: Path
) -> None:
    bucket = Store(s3.uri)
    for image in write_images(tmp_path / "images").iterdir():
        bucket.put(f"images/{image.name}", image.read_bytes())
        bucket.put(f"targets/{image.stem}.jpeg", image.read_bytes())
    moco = {f"module.encoder_q.{key}": value for key, value in ResNet50().state_dict().items()}
    sink = io.BytesIO()
    torch.save({"state_dict": moco}, sink)
    bucket.put("moco.pth.tar", sink.getvalue())
    source, run, weights = map(bucket.uri, ("images", "run", "moco.pth.tar"))
    ended = Job(
        tmp_path,
        *("--input", source, "--output", run, "--model", tiny_bundle, *SETTINGS),
        *("--images", 40, "--workers", 2, "--moco", 0.5, "--moco-weights", weights),
        *("--target", bucket.uri("targets"), "--degrade", "downsample:4,jpeg:50"),
        job="train_restyle",
        **s3.env,
    ).ended()
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[0])
    assert (result["pairs"], result["without_target"], result["without_source"]) == (40, 0, 0)
    lines = [json.loads(line) for line in bucket.get("run/encoder.jsonl").splitlines()]
    assert [line["images"] for line in lines] == [20, 40]
    assert all(np.isfinite(value) for value in lines[-1]["held_out_l2"])
    assert any("moco" in name for name in lines[-1])
    trained = load_model(str(ended.line["bundle"]))
    assert trained.fingerprint != load_model(tiny_bundle).fingerprint


@pytest.mark.parametrize("stop", [Job.interrupt, Job.terminate])
def test_a_stopped_training_reports_on_both_streams(
    tiny_bundle: str, tmp_path: Path, stop: Callable[[Job], Ended]
) -> None:
    images = write_images(tmp_path / "images")
    where = ("--input", images, "--output", "run", "--model", tiny_bundle)
    started = Job(tmp_path, *where, *SETTINGS, "--images", 400_000, job="train_restyle")
    wait_for_reports(started, tmp_path / "run", 1)
    ended = stop(started)
    assert ended.code == 1, ended.err
    assert ended.err.splitlines()[-1] == "stopped: run the same command again to continue"
    assert "Traceback" not in ended.err
    assert ended.line == {"errors": [], "exit_code": 1}


def test_too_few_faces_are_reported_by_the_job(tiny_bundle: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    where = ("--input", images, "--output", "run", "--model", tiny_bundle)
    args = (*where, *SETTINGS, "--held-out", 38)
    ended = Job(tmp_path, *args, job="train_restyle").ended()
    assert ended.code == 2, ended.err
    assert ended.line["errors"][0].startswith("40 images, of which 38 are held out for validation")
    assert not (tmp_path / "run").exists(), "no crop was cut"


def test_a_workers_own_error_is_reported_unchanged(tiny_bundle: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (tmp_path / "pairs-00000.tar").write_bytes(b"no tar")
    where = ("--input", images, "--output", "run", "--model", tiny_bundle)
    args = (*where, *SETTINGS, "--realness", 0.1, "--codes", tmp_path)
    ended = Job(tmp_path, *args, job="train_restyle").ended()
    assert ended.code == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("InputError: ")
    assert "pairs-00000.tar' is no tar, or damaged" in last


def test_an_output_inside_the_input_is_refused(
    tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start would read the output's pictures as input and refuse to continue."""
    args = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--model", tiny_bundle]
    assert job.main(args) == 2
    assert "lies inside the input" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_request_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--input", "in", "--output", "out"]) == 2
    assert capsys.readouterr().err == "ConfigError: pass --model or --generator to start from\n"
