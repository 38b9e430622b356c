import json

import pytest
import torch
from torch import nn

from pipeline.training.schedule import (
    Log,
    average_into,
    last_report,
    learning_rate,
    load_checkpoint_file,
    save_checkpoint,
)


def test_the_rate_warms_up_holds_and_falls_to_zero():
    assert learning_rate(1.0, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(1.0, 5000, 0.5) == 1.0
    assert learning_rate(1.0, 5000, 0.75) == pytest.approx(0.5)
    assert learning_rate(1.0, 5000, 1.0) == pytest.approx(0.0)


def test_the_average_approaches_the_model():
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    before = (average.weight - model.weight).abs().max()
    for batches in range(20):
        average_into(average, model, batches)
    assert (average.weight - model.weight).abs().max() < 0.01 * before


def test_a_checkpoint_is_read_as_written_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "sub" / "state.pt"
    assert load_checkpoint_file(path) is None
    save_checkpoint(path, {"batches": 3, "live": {"w": torch.ones(2)}})
    state = load_checkpoint_file(path)
    assert state is not None
    assert state["batches"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_the_log_writes_means_since_its_last_line(tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl")
    log.add({"l1": torch.tensor(1.0)})
    log.add({"l1": torch.tensor(3.0)})
    log.report(images=32)
    log.add({"l1": torch.tensor(5.0)})
    log.report(images=48)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["l1"] for line in lines] == [2.0, 5.0]
    assert last_report(tmp_path / "log.jsonl")["images"] == 48
    assert last_report(tmp_path / "missing.jsonl") == {}
