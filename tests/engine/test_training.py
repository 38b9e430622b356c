"""Check what a training refuses, without Ray; tests/jobs runs the whole job."""

from __future__ import annotations

import itertools
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.alignment import AlignmentSettings
from pipeline.engine.cluster import Resources
from pipeline.engine.training.crops import CropPlan, plan_crops
from pipeline.engine.training.run import (
    _failures,
    _reporting_log,
    _trainer,
    begin_event,
    check_workers,
    run_training,
)
from pipeline.errors import (
    ConfigError,
    FingerprintError,
    InputError,
    PipelineError,
    RequestError,
    StorageError,
)
from pipeline.storage import Store
from pipeline.training.config import TrainConfig
from pipeline.training.data import CropFile, put_index
from pipeline.training.resume_check import Origin, save_settings


def test_other_settings_are_refused_before_any_work(five_images: TrainConfig) -> None:
    save_settings(five_images)
    run = Path(five_images.output)
    (run / "encoder.pt").write_bytes(b"")
    before = {path: path.read_bytes() for path in run.iterdir()}
    gone = five_images.model_copy(update={"input": str(run / "gone"), "seed": 1})
    with pytest.raises(FingerprintError, match="seed: 0 at the start, 1 now"):
        run_training(gone)  # an input that is not there is not even listed
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_other_images_are_refused_before_they_are_cut(five_images: TrainConfig) -> None:
    save_settings(five_images, plan_crops(five_images).origin)
    run = Path(five_images.output)
    (run / "encoder.pt").write_bytes(b"")
    Path(five_images.input, "0.png").unlink()
    with pytest.raises(FingerprintError, match=r"the images in '.*' have changed since"):
        run_training(five_images)
    assert sorted(path.name for path in run.iterdir()) == ["_train.json", "encoder.pt"]


def test_a_missing_gpu_is_refused_before_any_work(
    five_images: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU here"):
        run_training(five_images.model_copy(update={"device": "cuda"}))
    assert not Path(five_images.output).exists()


@pytest.mark.parametrize(
    ("settings", "offered", "expected"),
    [
        ({"workers": 2}, Resources(cpus=8, gpus=1), "--workers 2, each with a GPU"),
        ({"device": "cuda"}, Resources(cpus=8, gpus=0), "this machine has 0"),
        ({"workers": 4}, Resources(cpus=2, gpus=0), "4 workers, but Ray offers 2 cores"),
    ],
)
def test_more_workers_than_fit_are_refused(
    five_images: TrainConfig, settings: dict[str, Any], offered: Resources, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_workers(five_images.model_copy(update=settings), offered, local=True)


def test_a_cluster_may_still_start_its_nodes(five_images: TrainConfig) -> None:
    args = five_images.model_copy(update={"workers": 2, "device": "cuda"})
    check_workers(args, Resources(cpus=8, gpus=0), local=False)
    check_workers(args, Resources(cpus=1, gpus=0), local=False)
    check_workers(args.model_copy(update={"device": "cpu"}), Resources(cpus=8, gpus=1), local=True)


def test_workers_that_fit_nowhere_are_not_awaited_forever(
    five_images: TrainConfig,
) -> None:
    args = five_images.model_copy(update={"restarts": 2})
    trainer = _trainer(args, plan_crops(args), Resources(cpus=2, gpus=0))
    assert trainer.run_config.failure_config.controller_failure_limit == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"identity": 0.1, "identity_network": "gone.pth"}, "gone.pth"),
        ({"moco": 0.5, "moco_weights": "gone.pth.tar"}, "gone.pth.tar"),
        ({"realness": 0.1}, "no mapping network to draw real codes from"),
        ({"backbone": "gone.pth", "encoder_type": "BackboneEncoder"}, "gone.pth"),
    ],
)
def test_wrong_requests_are_refused_before_cutting_crops(
    five_images: TrainConfig, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RequestError, match=expected):
        run_training(five_images.model_copy(update=settings))
    assert not Path(five_images.output).exists()


def test_an_unreadable_log_is_read_again(
    five_images: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, lines, failed = itertools.count(), list[str](), threading.Event()

    def read_reports(*_: object) -> list[dict[str, int]]:
        call = next(calls)
        if call == 1:
            failed.set()
            raise StorageError("the bucket does not answer")
        return [{"images": 8}] if call else []

    monkeypatch.setattr("pipeline.engine.training.run.read_reports", read_reports)
    monkeypatch.setattr("pipeline.engine.training.run.POLL_S", 0.01)
    with _reporting_log(five_images, lines.append):
        assert failed.wait(10)
    assert lines == ['{"images": 8}']


def test_the_start_event_counts_the_crops(five_images: TrainConfig) -> None:
    store = Store(five_images.output)
    facts = {"samples": 9, "rejects_by_reason": {"undecodable": 1}}
    put_index(store, [CropFile("a", 5), CropFile("b", 3)], facts)
    config = five_images.model_copy(update={"held_out": 2, "batch": 4})
    plan = CropPlan(Origin("crops", "start"), [], AlignmentSettings(), store)
    assert begin_event(config, plan) == facts | {
        "event": "training_begins",
        "crops": 8,
        "held_out": 2,
        "trained_on": 6,
    }
    continuing = replace(plan, continued_from={"stage": 2})
    assert begin_event(config, continuing)["goes_on_with"] == {"stage": 2}
    store.put("encoder.pt", b"")  # from its own checkpoint it goes on with nothing else
    assert "goes_on_with" not in begin_event(config, continuing)
    with pytest.raises(InputError, match="do not fill a batch of 7"):
        begin_event(config.model_copy(update={"batch": 7}), plan)


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("pytorch_optimizer", r"restyle-pipeline\[train\]', or --optimiser adam"),
        ("torch.utils.tensorboard", r"restyle-pipeline\[train\]', or train with --no-tensorboard"),
    ],
)
def test_missing_packages_are_named_before_cutting_crops(
    five_images: TrainConfig, monkeypatch: pytest.MonkeyPatch, package: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=expected):
        run_training(five_images)
    assert not Path(five_images.output).exists()


def test_a_workers_refusal_is_raised_without_restarts() -> None:
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import WorkerGroupError

    from pipeline.engine.training.trainer import RetryUnlessRefused

    refused = WorkerGroupError("x", {0: OSError("collateral"), 1: InputError("too few")})
    policy = RetryUnlessRefused(FailureConfig(max_failures=3))
    assert policy.make_decision(refused) == FailureDecision.RAISE
    died = WorkerGroupError("x", {0: OSError("the node is gone")})
    assert policy.make_decision(died) == FailureDecision.RETRY
    with pytest.raises(InputError, match=r"^too few$"), _failures():
        raise refused
    with pytest.raises(PipelineError, match="run again to continue") as failure, _failures():
        raise died
    assert not isinstance(failure.value, RequestError)
