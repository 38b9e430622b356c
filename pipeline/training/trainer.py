"""Training loop for any `Task`: schedule, averaged weights, checkpoints, divergence check.

Deterministic by batch: which samples batch n holds and what is drawn at random in it depend on n,
the seed and the number of processes alone. So a run that is killed, and started again from its
last checkpoint, ends where an unbroken one ends, line for line.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.choices import OptimiserName
from pipeline.errors import ConfigError, ModelError
from pipeline.training import optimisers
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.distributed import Group
from pipeline.training.train_log import Journal


def learning_rate(peak: float, batches: int, progress: float, warm_up: int = 100) -> float:
    """`peak` after a linear warm-up over `warm_up` batches; cosine to zero over the second half.

    `progress` in [0, 1] is the share of the planned images seen.
    """
    warm = min(1.0, (batches + 1) / warm_up)
    late = min(1.0, max(0.0, 2 * progress - 1))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * late))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, batches: int, horizon: int = 500) -> None:
    """Exponential moving average of weights over about `horizon` batches, shorter at the start.

    With a `horizon` of 0 the average is the model as it is. Buffers are copied.
    """
    keep = min(1 - 1 / horizon, (1 + batches) / (10 + batches)) if horizon else 0.0
    for weight, fast in zip(average.parameters(), model.parameters(), strict=True):
        weight.lerp_(fast, 1 - keep)
    for buffer, fast_buffer in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(fast_buffer)


def gradient_norm(network: nn.Module) -> Tensor:
    """Length of all gradients of `network` as one vector, a scalar."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    norm: Tensor = nn.utils.get_total_norm(gradients)
    return norm


def all_finite(state: Any) -> bool:
    """Whether every tensor in `state`, nested dictionaries and lists, is without NaN and inf."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(all_finite, state.values()))
    return all(map(all_finite, state)) if isinstance(state, (list, tuple)) else True


BatchT = TypeVar("BatchT")
Validation = Mapping[str, float | list[float]]


@dataclass(frozen=True)
class LoopPlan:
    """How long, how fast, and how often to look; counted in images over all processes."""

    images: int  # to see in all; may be raised when resuming
    batch: int
    peak_rate: float
    optimiser: OptimiserName = "adam"
    beta2: float = 0.99  # of Adam; a checkpoint keeps its own
    warm_up: int = 100  # batches until the rate is at its peak
    decay: bool = True  # cosine to zero over the second half; off: constant after the warm-up
    clip: float | None = None  # largest norm of the gradient
    horizon: int = 500  # batches that the averaged weights look back; 0 keeps the last weights
    report_every: int = 2_000  # images between validations, log lines and pictures
    save_every: int = 1_000  # images between checkpoints
    save_minutes: float | None = None  # a checkpoint also after so long
    seed: int = 0

    @property
    def batches(self) -> int:
        """Batches to run in all."""
        return self.images // self.batch


@dataclass(frozen=True)
class Moment:
    """Where in the training a batch is."""

    batches: int  # before this one
    images: int  # seen before this one
    planned: int  # images

    @property
    def progress(self) -> float:
        """Share of the planned images seen, [0, 1]."""
        return min(1.0, self.images / self.planned)


class Task(ABC, Generic[BatchT]):
    """What is trained, on what it is judged; the loop does the rest."""

    network: nn.Module  # its parameters that require gradients are trained
    late: Sequence[nn.Module] = ()  # parts of it whose gradients are None until each starts

    @abstractmethod
    def accumulate(self, batch: BatchT, moment: Moment) -> dict[str, Tensor]:
        """Add the gradients of one batch (`backward`); returns scalars to log, detached."""

    @abstractmethod
    def validate(self, network: nn.Module) -> Validation:
        """Figures of `network`, a copy of `self.network` in evaluation mode, on unseen data."""

    @abstractmethod
    def score(self, validation: Validation) -> float:
        """What the best weights are chosen by; lower is better."""

    def pictures(self, network: nn.Module) -> Tensor | None:  # noqa: ARG002 - for those that have
        """Cells [rows, columns, 3, h, w] in [-1, 1] to look at, or None."""
        return None

    def follow(self, moment: Moment, group: Group) -> dict[str, Tensor]:  # noqa: ARG002
        """What comes after the network's own step, an adversary's for one; scalars to log."""
        return {}

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """Called before the first batch of a training that has no checkpoint to go on from."""

    def state(self) -> dict[str, Any]:
        """What else a checkpoint has to hold: tensors and plain values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    network: nn.Module  # the averaged weights after the last batch, without gradients
    best: nn.Module  # those of the best validation; the same where there was none
    best_images: int


class _Run(Generic[BatchT]):
    """One training under way."""

    def __init__(
        self,
        plan: LoopPlan,
        task: Task[BatchT],
        checkpoints: Checkpoints,
        journal: Journal,
        group: Group,
    ) -> None:
        self.plan, self.task, self.group = plan, task, group
        self.checkpoints, self.journal = checkpoints, journal
        self.live = task.network.train()
        group.share_weights(self.live)
        self.average = copy.deepcopy(self.live).requires_grad_(False).eval()
        groups = optimisers.groups_of(self.live, task.late)
        self.optimiser = optimisers.make_optimiser(
            plan.optimiser, groups, plan.peak_rate, plan.beta2
        )
        self.batches, self.best_score, self.best_images = 0, float("inf"), 0
        self.saved_at = time.monotonic()

    @property
    def images(self) -> int:
        return self.batches * self.plan.batch

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        state = self.checkpoints.load()
        if not state or not state["batches"]:
            self.task.begin(self.optimiser)
            return
        self.batches = int(state["batches"])
        try:
            self.live.load_state_dict(state["live"])
            self.average.load_state_dict(state["average"])
            optimisers.restore(self.optimiser, state["optimiser"])
            self.task.restore(state.get("task", {}))
        except (RuntimeError, ValueError, KeyError) as error:  # of PyTorch: a line for each weight
            raise ModelError(
                f"the checkpoint '{self.checkpoints.uri}' is that of another network or optimiser: "
                "choose another output, or the model that it was begun with"
            ) from error
        self.best_score = float(state.get("best_score", float("inf")))
        self.best_images = int(state.get("best_images", 0))
        self.journal.resume(self.images, state.get("journal", {}))

    def step(self, batch: BatchT) -> None:
        """One batch: gradients, their mean over the processes, one step, the average."""
        plan, group = self.plan, self.group
        # By batch, so that a resumed run draws what an unbroken one would have drawn.
        torch.manual_seed(plan.seed + self.batches * group.size + group.rank)
        moment = Moment(self.batches, self.images, plan.images)
        late = moment.progress if plan.decay else 0.0
        for weights in self.optimiser.param_groups:
            weights["lr"] = learning_rate(plan.peak_rate, self.batches, late, plan.warm_up)
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.task.accumulate(batch, moment)
        group.average_gradients(self.live)
        norm = gradient_norm(self.live)
        self._check({**losses, "gradient": norm})
        if plan.clip:
            nn.utils.clip_grads_with_norm_(self.live.parameters(), plan.clip, norm)
        optimisers.step(self.optimiser)
        followed = self.task.follow(moment, group)
        self._check(followed)
        losses |= followed
        average_into(self.average, self.live, self.batches, plan.horizon)
        self.journal.add(losses)
        self.batches += 1
        if group.leads:
            self._account()

    def _check(self, scalars: Mapping[str, Tensor]) -> None:
        """Refuse to go on, in every process, where one of them has a scalar that is not finite.

        A single NaN would be in every weight after the step, and in the next checkpoint.
        """
        wrong = [name for name, value in scalars.items() if not math.isfinite(value)]
        if self.group.anywhere(bool(wrong), self.live):
            last = self.images + self.plan.batch
            told = ", ".join(map(repr, wrong)) or "number of another process"
            where = f"batch {self.batches} (images {self.images} to {last})"
            raise self._diverged(f"{where} gives no finite {told}")

    def _diverged(self, what: str) -> ConfigError:
        # Not an error to run again after: the same batch comes again, and ends the same.
        return ConfigError(
            f"the training has diverged: {what}. What was saved before in "
            f"'{self.checkpoints.uri}' is kept. Train to another --output with a lower --rate or "
            "--clip"
        )

    def _account(self) -> None:
        """Report and save where it is due: the report first, so that no checkpoint precedes it."""
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
            self.checkpoints.save_best(state)
        facts = {f"held_out_{name}": value for name, value in validation.items()}
        self.journal.report(self.images, facts)
        cells = self.task.pictures(self.average)
        if cells is not None:
            self.journal.picture(self.images, cells)

    def _save(self) -> None:
        state = {
            "batches": self.batches,
            "live": self.live.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "task": self.task.state(),
            "best_score": self.best_score,
            "best_images": self.best_images,
            "journal": self.journal.pending,
        }
        for part in ("live", "average", "optimiser", "task"):
            if not all_finite(state[part]):
                raise self._diverged(f"after {self.images} images '{part}' is not finite")
        self.checkpoints.save(state)
        self.saved_at = time.monotonic()

    def trained(self) -> Trained:
        """The averaged weights, and the best ones; refused where no validation was finite."""
        # The leading process alone validates.
        if self.group.leads and not math.isfinite(self.best_score):
            raise self._diverged("no validation was finite")
        best = copy.deepcopy(self.average)
        state = self.checkpoints.load_best() if self.best_images else None
        if state:
            best.load_state_dict(state["average"])
        return Trained(self.average, best, self.best_images or self.images)


def train(
    plan: LoopPlan,
    task: Task[BatchT],
    batches: Callable[[int], Iterator[BatchT]],  # the stream from batch n on, this process's share
    checkpoints: Checkpoints,
    journal: Journal,
    group: Group | None = None,
) -> Trained:
    """Train `task` for `plan.images`, going on from the last checkpoint.

    Losses in the log are those of the leading process's share. Raises `ModelError` for a
    checkpoint that is damaged or of another network, `ConfigError` for a training that diverges,
    whose last good checkpoint stays, and what the task raises.
    """
    run = _Run(plan, task, checkpoints, journal, group or Group())
    run.resume()
    journal.begin(run.images)
    for batch in itertools.islice(batches(run.batches), max(0, plan.batches - run.batches)):
        run.step(batch)
    journal.close()
    return run.trained()
