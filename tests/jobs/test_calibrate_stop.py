"""Run the calibration as a user does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from _pytest.capture import CaptureFixture

from jobs.calibrate_stop import main
from pipeline.inversion import StopRule
from pipeline.models import load_model
from pipeline.reports.stop_calibration import clock
from pipeline.reports.stop_report import stop_flags
from pipeline.storage import Store
from tests.conftest import Bucket

SAMPLES = str(Path(__file__).parents[2] / "pipeline" / "samples")


def test_it_chooses_and_reports_on_different_sets(
    tiny_bundle: str, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    sets = ["--calibrate", f"{SAMPLES}/samples-0000.tar", "--report", f"{SAMPLES}/samples-0001.tar"]
    small = ["--limit", "4", "--most", "3", "--like-steps", "2", "--model", tiny_bundle]
    assert main([*sets, *small, "--output", str(tmp_path / "curve")]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out.splitlines()[-1])
    rule = StopRule(record["gain"], record["residual"], record["least"], record["most"])
    assert rule.max_steps == 3
    assert record["flags"] == stop_flags(rule)
    assert f"jobs/invert_dataset.py {stop_flags(rule)}\n" in printed.err
    assert 1 <= record["steps"] <= 3
    names = {path.name for path in (tmp_path / "curve").iterdir()}
    assert names == {"stop_curve.md", "stop_curve.csv", "stop_curve.png"}


def test_a_missing_input_is_a_wrong_request(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    args = ["--calibrate", nowhere, "--report", nowhere, "--output", str(tmp_path / "out")]
    assert main(args) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture
def church(tiny_bundle: str, tmp_path: Path) -> str:
    """Return the tiny model as one of images without faces."""
    folder = tmp_path / "church"
    folder.mkdir()
    for path in Path(tiny_bundle).iterdir():
        text = path.read_bytes().replace(b'"domain": "faces"', b'"domain": "church"')
        (folder / path.name).write_bytes(text)
    return str(folder)


def smallest(*more: str) -> list[str]:
    """Return the flags of the smallest calibration, and more."""
    return ["--limit", "2", "--most", "2", "--like-steps", "2", *more]


@pytest.fixture
def views(tmp_path: Path, sample_images: dict[str, bytes]) -> list[str]:
    """Both sets: two landscapes, in which no face is found."""
    folder = tmp_path / "views"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jpg").write_bytes(sample_images["rejects/landscape.jpg"])
    return ["--calibrate", str(folder), "--report", str(folder)]


def test_a_non_face_model_takes_whole_images(
    church: str, views: list[str], tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    args = [*views, *smallest("--model", church, "--output", str(tmp_path / "curve"))]
    assert main([*args, "--fit", "crop"]) == 0
    result = capsys.readouterr().err
    assert "report: church model 'tiny'" in result
    assert "no face alignment, each image resized (crop) to 64x64" in result
    assert "2 faces to choose on, 2 to report on" in result
    assert main([*args, "--prealigned", "none"]) == 2
    assert "have no faces to align" in capsys.readouterr().err


def test_a_fit_applies_to_crops_only(
    tiny_bundle: str, views: list[str], tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    args = [*views, *smallest("--model", tiny_bundle, "--output", str(tmp_path / "curve"))]
    assert main([*args, "--fit", "crop"]) == 2
    assert "fit 'crop' needs prealigned images" in capsys.readouterr().err
    assert main([*args, "--fit", "crop", "--prealigned", "calibrate"]) == 2
    result = capsys.readouterr().err
    assert "calibrate: faces model 'tiny' (CompactEncoder): no face alignment" in result
    assert "report: faces model 'tiny' (CompactEncoder): faces aligned" in result
    assert result.endswith("views' has no faces to calibrate on\n")


def test_the_curve_goes_to_a_bucket(church: str, views: list[str], s3: Bucket) -> None:
    assert main([*views, *smallest("--model", church, "--output", f"{s3.uri}/curve")]) == 0
    store = Store(f"{s3.uri}/curve")
    assert sorted(store.names()) == ["stop_curve.csv", "stop_curve.md", "stop_curve.png"]
    assert b"--stop-gain=" in store.get("stop_curve.md")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--most", "1"], "must be 2 to 100, got 1"),
        (["--most", "101"], "must be 2 to 100, got 101"),
        (["--most", "3"], "5 steps to compare with are more than the maximum, 3"),
        (["--tolerance", "nan"], "the tolerance must be a fraction of L2"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_impossible_calibrations_are_refused_early(
    views: list[str], wrong: list[str], why: str, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    assert main([*views, "--output", str(tmp_path / "curve"), *wrong]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "curve").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_clock_waits_for_the_gpu(tiny_bundle: str) -> None:
    model = load_model(tiny_bundle, "cuda")
    square = torch.randn(4096, 4096, device="cuda")
    torch.mm(square, square)  # what the first call sets up is no work
    initial, start, end = clock(model), torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    for _ in range(50):
        torch.mm(square, square)
    end.record()
    seconds = clock(model) - initial
    assert seconds >= start.elapsed_time(end) / 1000
