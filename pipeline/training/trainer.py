"""Training loop for any `Task`: schedule, averaged weights, checkpoints, divergence check.

Deterministic per batch: the samples of batch n and its random draws depend only on n, the seed and
the number of processes. A run that is killed and resumed from its last checkpoint therefore ends
with the same weights and log lines as an uninterrupted run.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.choices import OptimiserName
from pipeline.errors import ConfigError, ModelError
from pipeline.storage import Store
from pipeline.training import optimisers
from pipeline.training.checkpoints import load_state, save_state
from pipeline.training.data import random_batches
from pipeline.training.distributed import Group
from pipeline.training.train_log import TrainLog


def learning_rate(max_lr: float, batches: int, progress: float, warmup_steps: int = 100) -> float:
    """Return the learning rate of one batch.

    It rises linearly to `max_lr` over `warmup_steps` batches and follows a cosine to zero over the
    second half of the training. `progress` in [0, 1] is the fraction of the planned images done.
    """
    warmup = min(1.0, (batches + 1) / warmup_steps)
    decay = min(1.0, max(0.0, 2 * progress - 1))
    return max_lr * warmup * 0.5 * (1 + math.cos(math.pi * decay))


@torch.no_grad()
def update_average(
    average: nn.Module, model: nn.Module, batches: int, ema_window: int = 500
) -> None:
    """Update the exponential moving average of the weights, in place.

    The average covers about `ema_window` batches, fewer at the start. With an `ema_window` of 0 it
    is a copy of the model. Buffers are copied.
    """
    decay = min(1 - 1 / ema_window, (1 + batches) / (10 + batches)) if ema_window else 0.0
    for averaged, weight in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(weight, 1 - decay)
    for averaged_buffer, buffer in zip(average.buffers(), model.buffers(), strict=True):
        averaged_buffer.copy_(buffer)


def all_finite(state: Any) -> bool:
    """Return whether no tensor in `state` (nested dictionaries and lists) has NaN or infinity."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(all_finite, state.values()))
    return all(map(all_finite, state)) if isinstance(state, (list, tuple)) else True


BatchT = TypeVar("BatchT")
Validation = Mapping[str, float | list[float]]


@dataclass(frozen=True)
class LoopPlan:
    """Settings of the training loop; numbers of images count over all processes."""

    images: int  # total to train on; may be raised when resuming
    batch: int
    max_lr: float
    optimiser: OptimiserName = "adam"
    beta2: float = 0.99  # for Adam; a resumed run keeps the checkpoint's value
    warmup_steps: int = 100  # batches until the learning rate reaches max_lr
    decay: bool = True  # cosine to zero over the second half; False: constant after the warm-up
    clip: float | None = None  # maximum gradient norm
    ema_window: int = 500  # batches that the averaged weights cover; 0 keeps the last weights
    report_every: int = 2_000  # images between validations, log lines and pictures
    save_every: int = 1_000  # images between checkpoints
    save_minutes: float | None = None  # maximum minutes between checkpoints
    seed: int = 0

    @property
    def batches(self) -> int:
        """Number of batches of the whole training."""
        return self.images // self.batch


@dataclass(frozen=True)
class TrainState:
    """Position of one batch in the training."""

    batches: int  # before this one
    images: int  # before this one
    planned: int  # images

    @property
    def progress(self) -> float:
        """Fraction of the planned images done, [0, 1]."""
        return min(1.0, self.images / self.planned)


class Task(ABC, Generic[BatchT]):
    """Network, losses and validation of one kind of training; `train` runs it."""

    network: nn.Module  # parameters with requires_grad are trained
    late: Sequence[nn.Module] = ()  # submodules that start later: gradients None until then

    @abstractmethod
    def accumulate(self, batch: BatchT, train_state: TrainState) -> dict[str, Tensor]:
        """Run `backward` on the losses of one batch; return scalars to log, detached."""

    @abstractmethod
    def validate(self, network: nn.Module) -> Validation:
        """Return metrics of `network`, an averaged copy in evaluation mode, on held-out data."""

    @abstractmethod
    def score(self, validation: Validation) -> float:
        """Return the number by which the best weights are chosen; lower is better."""

    def pictures(self, network: nn.Module) -> Tensor | None:  # noqa: ARG002 - for subclasses
        """Return preview images [rows, columns, 3, h, w] in [-1, 1], or None."""
        return None

    def after_step(self, train_state: TrainState, group: Group) -> dict[str, Tensor]:  # noqa: ARG002
        """Run after the optimiser step, for example a discriminator's step; return scalars."""
        return {}

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """Prepare a training that starts without a checkpoint, before its first batch."""

    def state(self) -> dict[str, Any]:
        """Return the task's part of a checkpoint: tensors and plain values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    network: nn.Module  # the averaged weights after the last batch, without gradients
    best: nn.Module  # averaged weights with the best validation score, or `network`
    best_images: int


class _Run(Generic[BatchT]):
    """State of a running training."""

    def __init__(
        self,
        plan: LoopPlan,
        task: Task[BatchT],
        store: Store,
        train_log: TrainLog,
        group: Group,
    ) -> None:
        self.plan, self.task, self.group = plan, task, group
        self.store, self.train_log = store, train_log
        self.last_name, self.best_name = f"{train_log.name}.pt", f"{train_log.name}-best.pt"
        self.live = task.network.train()
        group.share_weights(self.live)
        self.average = copy.deepcopy(self.live).requires_grad_(False).eval()
        groups = optimisers.groups_of(self.live, task.late)
        self.optimiser = optimisers.make_optimiser(plan.optimiser, groups, plan.max_lr, plan.beta2)
        self.batches, self.best_score, self.best_images = 0, float("inf"), 0
        self.saved_at = time.monotonic()

    @property
    def images(self) -> int:
        return self.batches * self.plan.batch

    def resume(self) -> None:
        """Restore the last checkpoint, if there is one."""
        state = load_state(self.store, self.last_name)
        if not state or not state["batches"]:
            self.task.begin(self.optimiser)
            return
        self.batches = int(state["batches"])
        try:
            self.live.load_state_dict(state["live"])
            self.average.load_state_dict(state["average"])
            optimisers.restore(self.optimiser, state["optimiser"])
            self.task.restore(state.get("task", {}))
        except (RuntimeError, ValueError, KeyError) as error:  # PyTorch's lists every weight
            raise ModelError(
                f"the checkpoint '{self.store.uri(self.last_name)}' is of another network or "
                "optimiser: choose another output, or the model that the training started with"
            ) from error
        self.best_score = float(state.get("best_score", float("inf")))
        self.best_images = int(state.get("best_images", 0))
        self.train_log.resume(self.images, state.get("journal", {}))

    def step(self, batch: BatchT) -> None:
        """Train on one batch: gradients averaged over all processes, optimiser step, EMA."""
        plan, group = self.plan, self.group
        # Seeded per batch, so that a resumed run makes the same draws as an uninterrupted one.
        torch.manual_seed(plan.seed + self.batches * group.size + group.rank)
        train_state = TrainState(self.batches, self.images, plan.images)
        progress = train_state.progress if plan.decay else 0.0
        for weights in self.optimiser.param_groups:
            weights["lr"] = learning_rate(plan.max_lr, self.batches, progress, plan.warmup_steps)
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.task.accumulate(batch, train_state)
        group.average_gradients(self.live)
        gradients = [weight.grad for weight in self.live.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._check({**losses, "gradient": norm})
        if plan.clip:
            nn.utils.clip_grads_with_norm_(self.live.parameters(), plan.clip, norm)
        optimisers.step(self.optimiser)
        later = self.task.after_step(train_state, group)
        self._check(later)
        losses |= later
        update_average(self.average, self.live, self.batches, plan.ema_window)
        self.train_log.add(losses)
        self.batches += 1
        if group.is_main_process:
            self._report_and_save()

    def _check(self, scalars: Mapping[str, Tensor]) -> None:
        """Raise in every process when any of them has a scalar that is NaN or infinite.

        After the step a single NaN would be in every weight, and in the next checkpoint.
        """
        wrong = [name for name, value in scalars.items() if not math.isfinite(value)]
        if self.group.all_reduce_any(bool(wrong), self.live):
            last = self.images + self.plan.batch
            names = ", ".join(map(repr, wrong)) or "a value of another process"
            where = f"batch {self.batches} (images {self.images} to {last})"
            raise self._diverged(f"in {where} not finite: {names}")

    def _diverged(self, what: str) -> ConfigError:
        # A ConfigError, so that it is not retried: the same batch would give the same result.
        return ConfigError(
            f"the training has diverged: {what}. The last checkpoint, "
            f"'{self.store.uri(self.last_name)}', is kept. Train to another --output with a lower "
            "--rate or --clip"
        )

    def _report_and_save(self) -> None:
        """Report and save when due; the report first, so that the checkpoint includes it."""
        last = self.batches == self.plan.batches
        if self._due(self.plan.report_every) or last:
            self._report()
        minutes = (time.monotonic() - self.saved_at) / 60
        overdue = self.plan.save_minutes is not None and minutes >= self.plan.save_minutes
        if self._due(self.plan.save_every) or overdue or last:
            self._save()

    def _due(self, every: int) -> bool:
        return self.images % every < self.plan.batch

    def _report(self) -> None:
        validation = self.task.validate(self.average)
        score = self.task.score(validation)
        if score < self.best_score:
            self.best_score, self.best_images = score, self.images
            state = {"batches": self.batches, "score": score, "average": self.average.state_dict()}
            save_state(self.store, self.best_name, state)
        facts = {f"held_out_{name}": value for name, value in validation.items()}
        self.train_log.report(self.images, facts)
        cells = self.task.pictures(self.average)
        if cells is not None:
            self.train_log.picture(self.images, cells)

    def _save(self) -> None:
        state = {
            "batches": self.batches,
            "live": self.live.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "task": self.task.state(),
            "best_score": self.best_score,
            "best_images": self.best_images,
            "journal": self.train_log.pending,
        }
        for part in ("live", "average", "optimiser", "task"):
            if not all_finite(state[part]):
                raise self._diverged(f"after {self.images} images '{part}' has NaN or infinity")
        save_state(self.store, self.last_name, state)
        self.saved_at = time.monotonic()

    def result(self) -> Trained:
        """Return the averaged and the best weights. Raises where no validation was finite."""
        # Only the main process validates.
        if self.group.is_main_process and not math.isfinite(self.best_score):
            raise self._diverged("no validation was finite")
        best = copy.deepcopy(self.average)
        state = load_state(self.store, self.best_name) if self.best_images else None
        if state:
            best.load_state_dict(state["average"])
        return Trained(self.average, best, self.best_images or self.images)


def train(
    plan: LoopPlan,
    task: Task[BatchT],
    count: int,  # samples
    batch_at: Callable[[Tensor], BatchT],  # takes the numbers of samples
    store: Store,
    name: str,
    group: Group | None = None,
    *,
    shuffled: Callable[[torch.Generator], Tensor] | None = None,  # see `random_batches`
    tensorboard: bool = False,
) -> Trained:
    """Train `task` for `plan.images` images, resuming from the last checkpoint in `store`.

    Writes `<name>.pt`, the last checkpoint, `<name>-best.pt`, the best weights, and the files of
    `TrainLog`, with the losses of the main process's share of each batch. Raises `ModelError` for a
    checkpoint that is damaged or of another network, `ConfigError` for a training that diverges
    (its last checkpoint is kept), and what the task raises.
    """
    group = group or Group()
    train_log = TrainLog(store, name)
    run = _Run(plan, task, store, train_log, group)
    run.resume()
    if tensorboard and group.is_main_process:
        train_log.open_tensorboard(run.images)
    numbers = random_batches(count, plan.batch, plan.seed, run.batches, shuffled)
    try:
        for index in itertools.islice(numbers, max(0, plan.batches - run.batches)):
            run.step(batch_at(group.share(index)))
    finally:
        train_log.close()
    return run.result()
