"""Promises about Ray's own lines: not between the user's, and not lost."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import worker

from pipeline.engine import cluster
from pipeline.engine.address import RAY_LOG
from pipeline.engine.ray_callbacks import ray_lines_in_file, ray_log_folder

DIED = {"lines": ["A worker died or was killed"], "pid": "raylet", "is_err": False}


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of logs of a Ray that seems to run here."""
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path), node_ip_address="127.0.0.1")
    monkeypatch.setattr(worker, "_global_node", node)
    monkeypatch.delenv(RAY_LOG, raising=False)
    return tmp_path


def a_logger_of_ray() -> tuple[logging.Logger, logging.Handler]:
    """One with a console, as Ray's have."""
    logger, console = logging.getLogger("ray.of_a_test"), logging.StreamHandler()
    logger.handlers, logger.propagate = [console], False
    return logger, console


def test_rays_lines_are_in_a_file_and_not_on_the_terminal(
    logs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printing, logger, console = worker.print_to_stdstream, *a_logger_of_ray()
    with ray_lines_in_file():
        worker.print_to_stdstream(DIED, ignore_prefix=False)
        logger.error("a trace\nof many lines")
    assert capfd.readouterr() == ("", "")
    (file,) = logs.iterdir()
    assert "(raylet) A worker died or was killed" in file.read_text()
    assert "a trace\nof many lines" in file.read_text()
    assert ray_log_folder() == str(logs)
    assert worker.print_to_stdstream is printing
    assert logger.handlers == [console]


def test_on_request_rays_lines_are_shown(
    logs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_LOG, "1")
    with ray_lines_in_file():
        worker.print_to_stdstream(DIED, ignore_prefix=False)
    assert "A worker died or was killed" in "".join(capfd.readouterr())
    assert list(logs.iterdir()) == []
    assert cluster._loudness() == {"logging_level": logging.INFO, "log_to_driver": True}


def test_a_folder_that_cannot_be_written_to_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    node = SimpleNamespace(get_logs_dir_path=lambda: "/proc/no/such/folder")
    monkeypatch.setattr(worker, "_global_node", node)
    with ray_lines_in_file():
        worker.print_to_stdstream(DIED, ignore_prefix=False)
    assert capfd.readouterr() == ("", "")
