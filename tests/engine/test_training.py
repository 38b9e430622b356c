"""What a training refuses, and when, without Ray; tests/jobs has the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine.training import run_training
from pipeline.errors import FingerprintError
from pipeline.training.config import TrainConfig
from pipeline.training.settled import keep_settings


def test_other_settings_are_refused_before_any_work(five_images: TrainConfig) -> None:
    keep_settings(five_images)
    run = Path(five_images.output)
    (run / "encoder.pt").write_bytes(b"")
    before = {path: path.read_bytes() for path in run.iterdir()}
    gone = five_images.model_copy(update={"input": str(run / "gone"), "seed": 1})
    with pytest.raises(FingerprintError, match="seed: 0 when it began, 1 asked for"):
        run_training(gone)  # an input that is not there is not even listed
    assert {path: path.read_bytes() for path in run.iterdir()} == before
