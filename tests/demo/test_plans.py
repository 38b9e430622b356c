"""A build of a demo model resumes only with the plan that it started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import build_demo_model as job
from pipeline.demo.plans import CARTOON, FACES, check_plan, save_plan
from pipeline.errors import FingerprintError
from pipeline.models import load_model
from pipeline.storage import Store


@pytest.fixture
def work(tmp_path: Path) -> str:
    """Return a folder with a started build of the faces' generator."""
    folder = str(tmp_path / "work")
    save_plan(FACES, None, folder, pairs=24)
    Store(folder).put("generator.pt", b"")
    return folder


def test_length_and_report_interval_may_change(work: str) -> None:
    generator = replace(FACES.generator, images=90_000, report_every=10, save_every=10)
    encoder = replace(FACES.encoder, images=50_000, save_minutes=1.0)
    check_plan(replace(FACES, generator=generator, encoder=encoder), None, work, pairs=24)


def test_flags_set_the_length_of_each_stage() -> None:
    flags = ["--generator-images", "1", "--growth-images", "2", "--encoder-images", "3"]
    plan = job.planned(job.parse_arguments(["--pairs", "pairs", *flags]))
    assert plan.growth is not None
    assert (plan.generator.images, plan.growth.loop.images, plan.encoder.images) == (1, 2, 3)
    assert (plan.first_size, plan.size) == (64, 128)
    cartoon = job.planned(job.parse_arguments(["--pairs", "pairs", "--look", "cartoon"]))
    assert (cartoon.growth, cartoon.size) == (None, 64)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (CARTOON, 'name: "demo" at the start, "demo-toonify" now'),
        (replace(FACES, channels={**FACES.channels, 64: 24}), "channels.64: 48 at the start, 24"),
        (
            replace(FACES, encoder=replace(FACES.encoder, max_lr=1e-3)),
            "encoder.peak_rate: 0.0015 at the start, 0.001 now",
        ),
        (replace(FACES, rounds=replace(FACES.rounds, steps=3)), "rounds.steps: 5 at the start, 3"),
    ],
)
def test_another_plan_is_refused(work: str, plan, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FingerprintError) as refusal:
        check_plan(plan, None, work)
    assert message in str(refusal.value)


def test_another_base_or_number_of_pairs_is_refused(work: str, tiny_bundle: str) -> None:
    with pytest.raises(FingerprintError, match="base: not set at the start"):
        check_plan(FACES, load_model(tiny_bundle), work)
    with pytest.raises(FingerprintError, match="pairs: 24 at the start, 30 now"):
        check_plan(FACES, None, work, pairs=30)


def test_job_refuses_another_look_before_reading_pairs(
    work: str, tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--look", "cartoon", "--base", tiny_bundle]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "pairs-00000.tar").write_bytes(b"never read")
    assert job.main(["--pairs", str(pairs), "--work", work, *flags]) == 2
    assert "choose another output or the same settings" in capsys.readouterr().err
    assert Store(work).names() == ["_plan.json", "generator.pt"]
