import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pipeline.storage import Store
from pipeline.training import train_log as train_log_module
from pipeline.training.train_log import TensorBoard, TrainLog, grid, read_reports, total_seconds


def test_lines_have_means_since_the_previous_line(tmp_path, capsys):
    log = TrainLog(Store(str(tmp_path)), "log")
    log.add({"l1": torch.tensor(1.0)})
    log.add({"l1": torch.tensor(3.0)})
    log.report(32, {"held_out_l2": [0.5, 0.25]})
    log.add({"l1": torch.tensor(5.0)})
    log.report(48, {})
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["l1"] for line in printed] == [2.0, 5.0]
    assert read_reports(Store(str(tmp_path)), "log") == printed
    assert read_reports(Store(str(tmp_path)), "missing") == []


def test_nan_and_infinity_are_logged_as_null(tmp_path, capsys):
    def no_literal(text):
        raise AssertionError(text)

    log = TrainLog(Store(str(tmp_path)), "log")
    log.report(8, {"l2": float("nan"), "lpips": [0.5, float("inf")]})
    for text in (capsys.readouterr().out, (tmp_path / "log.jsonl").read_text()):
        line = json.loads(text, parse_constant=no_literal)
        assert (line["l2"], line["lpips"]) == (None, [0.5, None])


def test_resumed_log_drops_lines_of_lost_batches(tmp_path):
    store = Store(str(tmp_path))
    first = TrainLog(store, "log")
    for images, loss in ((8, 1.0), (16, 2.0)):
        first.add({"l1": torch.tensor(loss)})
        first.report(images, {})
    second = TrainLog(store, "log")
    second.resume(12, {"sums": {"l1": 3.0}, "count": 1})
    second.add({"l1": torch.tensor(5.0)})
    second.report(16, {})
    assert [(line["images"], line["l1"]) for line in read_reports(store, "log")] == [
        (8, 1.0),
        (16, 4.0),
    ]


def test_seconds_exclude_work_lost_to_a_kill(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=10_000.0)
    monkeypatch.setattr(train_log_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    store = Store(str(tmp_path))
    lines = [{"images": images, "seconds": 50.0} for images in (8, 16)]
    store.put("log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    resumed = TrainLog(store, "log")
    resumed.resume(12, {"seconds": 20.0})
    assert resumed.pending["seconds"] == 20
    clock.now += 4
    resumed.report(16, {})
    clock.now += 3
    resumed.report(24, {})
    _, second, third = read_reports(store, "log")
    assert (second["seconds"], second["total_seconds"]) == (24, 74)
    assert (third["seconds"], third["total_seconds"]) == (3, 77)
    assert total_seconds([]) == 0


def test_grid_tiles_cells_into_one_picture(tmp_path):
    cells = torch.full((2, 3, 3, 4, 4), -1.0)
    cells[1, 2] = 1
    assert grid(cells).shape == (8, 12, 3)
    assert grid(cells)[4:, 8:].min() == 255
    TrainLog(Store(str(tmp_path)), "log").picture(40, cells)
    with Image.open(tmp_path / "pictures" / "log-000000040.png") as picture:
        assert picture.size == (12, 8)


def events_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_has_one_curve_per_step(tmp_path):
    store = Store(str(tmp_path))
    train_log = TrainLog(store, "log")
    train_log.open_tensorboard(0)
    train_log.add({"loss": torch.tensor(0.5)})
    train_log.report(64, {"held_out_l2": [0.25, 0.125]})
    train_log.picture(64, torch.zeros(1, 2, 3, 4, 4))
    train_log.close()
    events = events_in(tmp_path)
    (point,) = events.Scalars("held_out_l2/step_2")
    assert (point.step, point.value) == (64, 0.125)
    assert events.Scalars("loss")[0].value == 0.5
    assert len(events.Images("steps")) == 1


@pytest.mark.parametrize("resumed_at", [0, 10])
def test_tensorboard_hides_events_of_lost_batches(tmp_path, resumed_at):
    store = Store(str(tmp_path))
    killed = TensorBoard(store, 0)
    for images in (10, 20, 30):
        killed.scalars(images, {"loss": 1.0})
    killed.close()  # adds nothing to its file
    resumed = TensorBoard(store, resumed_at)
    for images in range(resumed_at + 10, 50, 10):
        resumed.scalars(images, {"loss": 2.0})
    resumed.close()
    visible = [(point.step, point.value) for point in events_in(tmp_path).Scalars("loss")]
    assert visible == [
        (images, 1.0 if images <= resumed_at else 2.0) for images in (10, 20, 30, 40)
    ]
