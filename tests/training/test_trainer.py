from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.storage import Store
from pipeline.training import train_log
from pipeline.training.checkpoints import load_state, save_state
from pipeline.training.train_log import read_reports
from pipeline.training.trainer import LoopPlan, Task, train

PLAN = LoopPlan(
    images=80, batch=4, max_lr=0.2, warmup_steps=4, ema_window=5, report_every=8, save_every=12
)


class LineTask(Task[torch.Tensor]):
    """Fit the slope 2 with noise drawn in every batch."""

    def __init__(self, fail_at: int | None = None) -> None:
        torch.manual_seed(7)
        self.network, self.fail_at, self.seen = nn.Linear(1, 1), fail_at, 0

    def accumulate(self, batch, train_state):
        if train_state.batches == self.fail_at:
            raise KeyboardInterrupt
        x = batch[:, None] + 0.1 * torch.randn(len(batch), 1)
        loss = (self.network(x) - 2 * x).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def validate(self, network):
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"l2": float((network(x) - 2 * x).square().mean())}

    def score(self, validation):
        return validation["l2"]

    def after_step(self, train_state, group):  # noqa: ARG002
        self.seen += 1
        return {}

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def fit(plan, task, store, **options):
    samples = torch.randn(80, generator=torch.Generator().manual_seed(0))
    return train(plan, task, len(samples), samples.__getitem__, store, "line", **options)


def run(folder, plan=PLAN, fail_at=None):
    store, task = Store(str(folder)), LineTask(fail_at)
    trained = fit(plan, task, store)
    reports = read_reports(store, "line")
    return trained, [{**line, "seconds": 0, "total_seconds": 0} for line in reports], task


def test_training_lowers_the_held_out_loss(tmp_path):
    _, reports, _ = run(tmp_path)
    assert reports[-1]["images"] == 80
    assert reports[-1]["held_out_l2"] < 0.5 * reports[0]["held_out_l2"]


@pytest.mark.parametrize("fail_at", [3, 4, 11])
@pytest.mark.parametrize("optimiser", ["adam", "ranger"])
def test_killed_run_resumes_to_identical_result(tmp_path, fail_at, optimiser):
    plan = replace(PLAN, optimiser=optimiser)
    whole, reports, task = run(tmp_path / "whole", plan)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", plan, fail_at)
    resumed, again, after = run(tmp_path / "killed", plan)
    assert again == reports
    assert after.seen == task.seen == 20
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name


class LateTask(LineTask):
    """Train the second layer from batch 6 on."""

    def __init__(self, fail_at=None):
        super().__init__(fail_at)
        self.network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        self.late = [self.network[1]]

    def accumulate(self, batch, train_state):
        losses = super().accumulate(batch, train_state)
        if train_state.batches < 6:
            self.late[0].zero_grad(set_to_none=True)
        return losses


@pytest.mark.parametrize("fail_at", [4, 11])
def test_late_parts_count_their_own_steps(tmp_path, fail_at):
    states = []
    for name, kills in (("whole", []), ("killed", [fail_at])):
        store = Store(str(tmp_path / name))
        for kill in kills:
            with pytest.raises(KeyboardInterrupt):
                fit(replace(PLAN, optimiser="ranger"), LateTask(kill), store)
        fit(replace(PLAN, optimiser="ranger"), LateTask(), store)
        states.append(load_state(store, "line.pt"))
    whole, killed = states
    assert [group["step"] for group in whole["optimiser"]["param_groups"]] == [20, 14]
    for key, weight in whole["live"].items():
        assert torch.equal(weight, killed["live"][key]), key


def test_validation_leaves_running_means_unchanged(tmp_path):
    class Normed(LineTask):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
            self.after_batches, self.around_validations = [], []

        def means(self, network):
            return float(self.network[0].running_mean), float(network[0].running_mean)

        def accumulate(self, batch, train_state):
            losses = super().accumulate(batch + 1, train_state)
            self.after_batches.append(float(self.network[0].running_mean))
            return losses

        def validate(self, network):
            before = self.means(network)
            validation = super().validate(network)
            self.around_validations.append((before, self.means(network)))
            return validation

    store, task = Store(str(tmp_path)), Normed()
    fit(PLAN, task, store)
    assert len(set(task.after_batches)) == 20
    assert task.after_batches[-1] == pytest.approx(1, abs=0.3)
    assert len(task.around_validations) == 10
    assert all(before == after for before, after in task.around_validations)


def spoil_gradient(task, losses):
    task.network.weight.grad.fill_(torch.inf)
    return losses


def spoil_loss(task, losses):  # noqa: ARG001 - of a term without a gradient
    return losses | {"other": torch.tensor(torch.nan)}


def spoil_weights(task, losses):
    task.network.bias.data.fill_(torch.nan)
    return losses


class DivergingTask(LineTask):
    """Produce a NaN or infinity at batch 13; the checkpoint before is of batch 12."""

    def __init__(self, spoil, where="accumulate"):
        super().__init__()
        self.spoil, self.where = spoil, where

    def accumulate(self, batch, train_state):
        losses = super().accumulate(batch, train_state)
        spoilt = train_state.batches == 13 and self.where == "accumulate"
        return self.spoil(self, losses) if spoilt else losses

    def after_step(self, train_state, group):
        losses = super().after_step(train_state, group)
        spoilt = train_state.batches == 13 and self.where == "after_step"
        return self.spoil(self, losses) if spoilt else losses


@pytest.mark.parametrize(
    ("spoil", "where", "message"),
    [
        (spoil_gradient, "accumulate", r"batch 13 \(images 52 to 56\) not finite: 'gradient'"),
        (spoil_loss, "accumulate", r"batch 13 \(images 52 to 56\) not finite: 'other'"),
        (spoil_loss, "after_step", r"batch 13 \(images 52 to 56\) not finite: 'other'"),
        (spoil_weights, "after_step", "after 56 images 'live' has NaN or infinity"),
    ],
)
def test_diverging_training_keeps_last_checkpoint(tmp_path, spoil, where, message):
    store, plan = Store(str(tmp_path)), replace(PLAN, save_every=8, report_every=24, clip=1.0)
    fit(replace(plan, images=52), LineTask(), store)
    before = store.get("line.pt")
    with pytest.raises(ConfigError, match=message) as refusal:
        fit(plan, DivergingTask(spoil, where), store)
    assert "lower --rate" in str(refusal.value)
    assert store.uri("line.pt") in str(refusal.value)
    assert store.get("line.pt") == before


def test_training_without_finite_validation_is_refused(tmp_path):
    class NanValidation(LineTask):
        def validate(self, network):  # noqa: ARG002
            return {"l2": float("nan"), "steps": [0.5, float("inf")]}

    store = Store(str(tmp_path))
    with pytest.raises(ConfigError, match="no validation was finite"):
        fit(PLAN, NanValidation(), store)
    assert read_reports(store, "line")[-1]["held_out_l2"] is None


class NoTensorBoard:
    """Record where it is opened, and whether it is closed."""

    def __init__(self, store, images):
        self.store = store
        store.put(f"opened-{images}", b"")

    def scalars(self, images, line):
        """Show nothing."""

    def close(self):
        self.store.put("closed", b"")


def test_tensorboard_opens_at_the_resumed_image(tmp_path, monkeypatch):
    monkeypatch.setattr(train_log, "TensorBoard", NoTensorBoard)
    store = Store(str(tmp_path))
    for images in (40, 80):
        fit(replace(PLAN, images=images), LineTask(), store, tensorboard=True)
    assert store.names("opened") == ["opened-0", "opened-40"]


def test_log_is_closed_when_training_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(train_log, "TensorBoard", NoTensorBoard)
    store = Store(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fit(PLAN, LineTask(fail_at=0), store, tensorboard=True)
    assert store.exists("closed")


def test_total_seconds_cover_all_runs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail_at=11)
    store = Store(str(tmp_path))
    state = load_state(store, "line.pt")
    assert state is not None
    state["journal"]["seconds"] += 1_000  # a run that took longer
    save_state(store, "line.pt", state)
    run(tmp_path)
    *_, last = read_reports(store, "line")
    assert 1_000 <= last["total_seconds"] < 1_100
    assert last["seconds"] < 100


def test_best_weights_survive_worse_ones(tmp_path):
    class WorseAndWorse(LineTask):
        scores = iter([3.0, 1.0, 2.0, 4.0, 5.0])

        def score(self, validation):  # noqa: ARG002
            return next(self.scores)

    store, plan = Store(str(tmp_path)), replace(PLAN, images=40)
    trained = fit(plan, WorseAndWorse(), store)
    assert trained.best_images == 16
    assert not torch.equal(trained.best.weight, trained.network.weight)


def test_finished_training_continues_with_more_images(tmp_path):
    first, _, _ = run(tmp_path)
    second, _, _ = run(tmp_path)
    assert torch.equal(first.network.weight, second.network.weight)
    _, reports, _ = run(tmp_path, replace(PLAN, images=96))
    assert reports[-1]["images"] == 96


def test_checkpoint_is_saved_after_the_minutes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(PLAN, save_every=10_000, save_minutes=0.0), fail_at=5)
    state = load_state(Store(str(tmp_path)), "line.pt")
    assert state is not None
    assert state["batches"] == 5


def test_checkpoint_of_another_network_is_refused(tmp_path):
    run(tmp_path, replace(PLAN, images=40))
    task, store = LineTask(), Store(str(tmp_path))
    task.network = nn.Linear(2, 1)
    with pytest.raises(ModelError, match="of another network") as refusal:
        fit(PLAN, task, store)
    assert "\n" not in str(refusal.value)
    assert store.uri("line.pt") in str(refusal.value)


def test_checkpoint_without_log_state_resumes(tmp_path):
    run(tmp_path, replace(PLAN, images=40))
    store = Store(str(tmp_path))
    state = load_state(store, "line.pt")
    assert state is not None
    kept = ("batches", "live", "average", "optimiser")
    save_state(store, "line.pt", {name: state[name] for name in kept} | {"task": {"seen": 10}})
    _, reports, _ = run(tmp_path)
    assert reports[-1]["images"] == 80
