import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.storage import Store
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.train_log import Journal, read_reports
from pipeline.training.trainer import LoopPlan, Task, train

PLAN = LoopPlan(
    images=80, batch=4, peak_rate=0.2, warm_up=4, horizon=5, report_every=8, save_every=12
)


class LineTask(Task[torch.Tensor]):
    """Find the slope 2 under noise that is drawn within the batch."""

    def __init__(self, fail_at: int | None = None) -> None:
        torch.manual_seed(7)
        self.network, self.fail_at, self.seen = nn.Linear(1, 1), fail_at, 0

    def accumulate(self, batch, moment):
        if moment.batches == self.fail_at:
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

    def follow(self, moment, group):  # noqa: ARG002
        self.seen += 1
        return {}

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def batches_from(first: int):
    for number in itertools.count(first):
        generator = torch.Generator().manual_seed(number)
        yield torch.randn(PLAN.batch, generator=generator)


def run(folder, plan=PLAN, fail_at=None):
    store, task = Store(str(folder)), LineTask(fail_at)
    trained = train(plan, task, batches_from, Checkpoints(store, "line"), Journal(store, "line"))
    reports = read_reports(store, "line")
    return trained, [{**line, "seconds": 0, "total_seconds": 0} for line in reports], task


def test_it_learns(tmp_path):
    _, reports, _ = run(tmp_path)
    assert reports[-1]["images"] == 80
    assert reports[-1]["held_out_l2"] < 0.5 * reports[0]["held_out_l2"]


@pytest.mark.parametrize("fail_at", [3, 4, 11])
@pytest.mark.parametrize("optimiser", ["adam", "ranger"])
def test_a_run_that_was_killed_ends_as_an_unbroken_one_line_for_line(tmp_path, fail_at, optimiser):
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
    """Its second layer starts at batch 6."""

    def __init__(self, fail_at=None):
        super().__init__(fail_at)
        self.network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        self.late = [self.network[1]]

    def accumulate(self, batch, moment):
        losses = super().accumulate(batch, moment)
        if moment.batches < 6:
            self.late[0].zero_grad(set_to_none=True)
        return losses


@pytest.mark.parametrize("fail_at", [4, 11])
def test_a_part_that_starts_late_counts_its_own_steps_also_after_a_kill(tmp_path, fail_at):
    states = []
    for name, kills in (("whole", []), ("killed", [fail_at])):
        store = Store(str(tmp_path / name))
        parts = Checkpoints(store, "line"), Journal(store, "line")
        for kill in kills:
            with pytest.raises(KeyboardInterrupt):
                train(replace(PLAN, optimiser="ranger"), LateTask(kill), batches_from, *parts)
        train(replace(PLAN, optimiser="ranger"), LateTask(), batches_from, *parts)
        states.append(parts[0].load())
    whole, killed = states
    assert [group["step"] for group in whole["optimiser"]["param_groups"]] == [20, 14]
    for key, weight in whole["live"].items():
        assert torch.equal(weight, killed["live"][key]), key


def test_batches_move_the_running_means_and_validations_do_not(tmp_path):
    class Normed(LineTask):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
            self.after_batches, self.around_validations = [], []

        def means(self, network):
            return float(self.network[0].running_mean), float(network[0].running_mean)

        def accumulate(self, batch, moment):
            losses = super().accumulate(batch + 1, moment)
            self.after_batches.append(float(self.network[0].running_mean))
            return losses

        def validate(self, network):
            before = self.means(network)
            validation = super().validate(network)
            self.around_validations.append((before, self.means(network)))
            return validation

    store, task = Store(str(tmp_path)), Normed()
    train(PLAN, task, batches_from, Checkpoints(store, "line"), Journal(store, "line"))
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
    """Ends in a number that is not finite at batch 13; the checkpoint before is of 12."""

    def __init__(self, spoil, where="accumulate"):
        super().__init__()
        self.spoil, self.where = spoil, where

    def accumulate(self, batch, moment):
        losses = super().accumulate(batch, moment)
        spoilt = moment.batches == 13 and self.where == "accumulate"
        return self.spoil(self, losses) if spoilt else losses

    def follow(self, moment, group):
        losses = super().follow(moment, group)
        spoilt = moment.batches == 13 and self.where == "follow"
        return self.spoil(self, losses) if spoilt else losses


@pytest.mark.parametrize(
    ("spoil", "where", "told"),
    [
        (spoil_gradient, "accumulate", r"batch 13 \(images 52 to 56\) gives no finite 'gradient'"),
        (spoil_loss, "accumulate", r"batch 13 \(images 52 to 56\) gives no finite 'other'"),
        (spoil_loss, "follow", r"batch 13 \(images 52 to 56\) gives no finite 'other'"),
        (spoil_weights, "follow", "after 56 images 'live' is not finite"),
    ],
)
def test_a_training_that_diverges_ends_and_keeps_its_last_good_state(tmp_path, spoil, where, told):
    store, plan = Store(str(tmp_path)), replace(PLAN, save_every=8, report_every=24, clip=1.0)
    parts = Checkpoints(store, "line"), Journal(store, "line")
    train(replace(plan, images=52), LineTask(), batches_from, *parts)
    before = store.get("line.pt")
    with pytest.raises(ConfigError, match=told) as refusal:
        train(plan, DivergingTask(spoil, where), batches_from, *parts)
    assert "lower --rate" in str(refusal.value)
    assert store.uri("line.pt") in str(refusal.value)
    assert store.get("line.pt") == before


def test_a_training_without_a_finite_validation_leaves_no_result(tmp_path):
    class Unjudged(LineTask):
        def validate(self, network):  # noqa: ARG002
            return {"l2": float("nan"), "steps": [0.5, float("inf")]}

    store = Store(str(tmp_path))
    with pytest.raises(ConfigError, match="no validation was finite"):
        train(PLAN, Unjudged(), batches_from, Checkpoints(store, "line"), Journal(store, "line"))
    assert read_reports(store, "line")[-1]["held_out_l2"] is None


def test_a_board_is_opened_where_the_run_goes_on(tmp_path):
    opened = []

    class NoBoard:
        def __init__(self, images):
            opened.append(images)

        def scalars(self, images, line):
            """Show nothing."""

        def close(self):
            """Nothing to close."""

    store = Store(str(tmp_path))
    for images in (40, 80):
        journal, plan = Journal(store, "line", NoBoard), replace(PLAN, images=images)
        train(plan, LineTask(), batches_from, Checkpoints(store, "line"), journal)
    assert opened == [0, 40]


def test_the_seconds_of_all_runs_of_a_training_are_counted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail_at=11)
    checkpoints, store = Checkpoints(Store(str(tmp_path)), "line"), Store(str(tmp_path))
    state = checkpoints.load()
    assert state is not None
    state["journal"]["seconds"] += 1_000  # a run that took longer
    checkpoints.save(state)
    run(tmp_path)
    *_, last = read_reports(store, "line")
    assert 1_000 <= last["total_seconds"] < 1_100
    assert last["seconds"] < 100


def test_the_best_weights_are_kept_when_later_ones_are_worse(tmp_path):
    class WorseAndWorse(LineTask):
        scores = iter([3.0, 1.0, 2.0, 4.0, 5.0])

        def score(self, validation):  # noqa: ARG002
            return next(self.scores)

    store, plan = Store(str(tmp_path)), replace(PLAN, images=40)
    trained = train(
        plan, WorseAndWorse(), batches_from, Checkpoints(store, "line"), Journal(store, "line")
    )
    assert trained.best_images == 16
    assert not torch.equal(trained.best.weight, trained.network.weight)


def test_a_finished_training_is_not_begun_again_and_a_longer_one_goes_on(tmp_path):
    first, _, _ = run(tmp_path)
    second, _, _ = run(tmp_path)
    assert torch.equal(first.network.weight, second.network.weight)
    _, reports, _ = run(tmp_path, replace(PLAN, images=96))
    assert reports[-1]["images"] == 96


def test_a_checkpoint_comes_after_so_many_minutes_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(PLAN, save_every=10_000, save_minutes=0.0), fail_at=5)
    state = Checkpoints(Store(str(tmp_path)), "line").load()
    assert state is not None
    assert state["batches"] == 5


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path):
    run(tmp_path, replace(PLAN, images=40))
    task, store = LineTask(), Store(str(tmp_path))
    task.network = nn.Linear(2, 1)
    with pytest.raises(ModelError, match="of another network") as refusal:
        train(PLAN, task, batches_from, Checkpoints(store, "line"), Journal(store, "line"))
    assert "\n" not in str(refusal.value)
    assert store.uri("line.pt") in str(refusal.value)


def test_a_checkpoint_without_a_journal_is_enough_to_go_on(tmp_path):
    run(tmp_path, replace(PLAN, images=40))
    checkpoints = Checkpoints(Store(str(tmp_path)), "line")
    state = checkpoints.load()
    assert state is not None
    known = ("batches", "live", "average", "optimiser")
    checkpoints.save({name: state[name] for name in known} | {"task": {"seen": 10}})
    _, reports, _ = run(tmp_path)
    assert reports[-1]["images"] == 80
