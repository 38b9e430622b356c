"""Continue the training that a model comes from: its stage, discriminator and optimiser state.

The official e4e program stores these with the weights (`global_step`, `discriminator_state_dict`,
`optimizer`, …). A bundle of this project has the number of images it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models import RestyleModel
from pipeline.models.checkpoint import read_checkpoint
from pipeline.models.files import open_model_file
from pipeline.models.state_files import check_entries
from pipeline.training import optimisers
from pipeline.training.config import TrainConfig
from pipeline.training.e4e import LatentDiscriminator, Stages, late_heads

_TRAINING_FILES = (".pt", ".pth")
_BATCH = 8  # of the published commands, for files without batch_size
_ADAM_STATE = ("exp_avg", "exp_avg_sq")
_STATE_KEYS = {"adam": _ADAM_STATE, "ranger": (*_ADAM_STATE, "slow_buffer")}


@dataclass(frozen=True)
class Continuation:
    """State of an earlier training; None for what is missing in the file or does not fit."""

    images: int  # trained on so far
    official: bool  # from an official file; otherwise from a bundle of this project
    stages: Stages | None = None  # from its options, in images
    discriminator: Mapping[str, Tensor] | None = None
    discriminator_optimiser: Mapping[str, Any] | None = None
    optimiser: Mapping[str, Any] | None = None  # converted to this project's layout
    without_optimiser: str = ""  # reason why `optimiser` is None

    def facts(self, stages: Stages | None, n_styles: int, *, adversary: bool) -> dict[str, Any]:
        """Return what is continued, for the log; `stages` are those in force."""
        restored = "restored" if self.discriminator else "new: the file has none"
        return {
            "images": self.images,
            "stage": stages.at(self.images, n_styles) if stages else None,
            "last_stage": n_styles - 1,
            "discriminator": restored if adversary else "none in this training",
            "optimiser": "restored" if self.optimiser else f"new: {self.without_optimiser}",
        }


def continuation_of(config: TrainConfig, model: RestyleModel) -> Continuation | None:
    """Return the training that the config's model comes from.

    None for a new encoder and for files that do not record a training. Raises `ModelError` for a
    discriminator of another shape, and `ConfigError` for stages that are not evenly spaced.
    """
    if config.encoder_type or not config.model:
        return None
    if PurePosixPath(config.model).suffix in _TRAINING_FILES:
        with open_model_file(config.model) as file:
            content = read_checkpoint(file, config.model)
        return _of_official(content, config, model)
    notes = model.card.notes
    if "trained_images" not in notes:
        return None
    images = int(notes["trained_images"]) + int(notes.get("images_before", 0))
    return Continuation(images, official=False, without_optimiser="a bundle has none")


def _of_official(
    content: Mapping[str, Any], config: TrainConfig, model: RestyleModel
) -> Continuation | None:
    step = content.get("global_step")
    if step is None:
        return None
    options = content.get("opts") or {}
    options = options if isinstance(options, Mapping) else vars(options)
    source, batch = str(config.model), int(options.get("batch_size") or _BATCH)
    state, why = optimiser_state(content.get("optimizer"), options, config.optimiser, model.encoder)
    return Continuation(
        images=(int(step) + 1) * batch,  # the official program saves before it counts the step
        official=True,
        stages=_stages(options, batch, config, source),
        discriminator=_discriminator(content.get("discriminator_state_dict"), source),
        discriminator_optimiser=content.get("discriminator_optimizer_state_dict"),
        optimiser=state,
        without_optimiser=why,
    )


def _stages(
    options: Mapping[str, Any], batch: int, config: TrainConfig, source: str
) -> Stages | None:
    """Return the stages of the options, whose steps count batches; None when it had none."""
    steps = [int(step) for step in options.get("progressive_steps") or ()]
    if len(steps) < 2 or config.progressive_start is not None:
        start = options.get("progressive_start")
        every = options.get("progressive_step_every") or 2_000
        return None if start is None else Stages(int(start) * batch, int(every) * batch)
    gaps = {after - before for before, after in itertools.pairwise(steps[1:])}
    if len(gaps) > 1 or steps[0] != 0:
        raise ConfigError(
            f"{source}: its progressive_steps are not evenly spaced: give the stages with "
            "--progressive-start and --progressive-every, in images"
        )
    return Stages(steps[1] * batch, max(1, *gaps, 1) * batch)


def _discriminator(state: Any, source: str) -> Mapping[str, Tensor] | None:
    if state is None:
        return None
    refusal = f"{source}: its discriminator is not of e4e's architecture"
    if not isinstance(state, Mapping):
        raise ModelError(f"{refusal}: a {type(state).__name__}")
    check_entries(LatentDiscriminator().state_dict(), state, refusal)
    return state


def optimiser_state(
    stored: Any, options: Mapping[str, Any], optimiser: str, encoder: nn.Module
) -> tuple[dict[str, Any] | None, str]:
    """Convert an official optimiser's state for `restore_optimiser`.

    Returns the state, or None and the reason. `optimiser` is the name of this training's.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("state"), Mapping):
        return None, "the file has none"
    name = str(options.get("optim_name", "ranger"))
    if name != optimiser:
        return None, f"the file's is {name}, this training's is {optimiser}"
    encoder.requires_grad_(True)  # as in the training
    state = stored["state"]
    entry_of = {id(weight): state.get(place) for place, weight in enumerate(encoder.parameters())}
    groups = [group["params"] for group in optimisers.groups_of(encoder, late_heads(encoder))]
    weights = [weight for group in groups for weight in group]
    entries = {number: entry_of[id(weight)] for number, weight in enumerate(weights)}
    if not all(_fits(entries[number], weight, name) for number, weight in enumerate(weights)):
        return None, "the file's belongs to other weights"
    steps = [{_steps_of(entry_of[id(weight)]) for weight in group} for group in groups]
    if name == "ranger" and any(len(counts) > 1 for counts in steps):  # counts per group here
        return None, "the file's has different step counts within one part of the encoder"
    kept = {n: _converted(entry, name) for n, entry in entries.items() if entry is not None}
    return {"state": kept, "steps": [max(counts) for counts in steps]}, ""


def _fits(entry: Any, weight: nn.Parameter, name: str) -> bool:
    """Return whether an optimiser's entry, if there is one, has the shapes of `weight`."""
    if entry is None:
        return True
    if not isinstance(entry, Mapping) or "step" not in entry:
        return False
    shapes = [getattr(entry.get(key), "shape", None) for key in _STATE_KEYS[name]]
    return all(shape == weight.shape for shape in shapes)


def _steps_of(entry: Mapping[str, Any] | None) -> int:
    return 0 if entry is None else int(entry["step"])


def _converted(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry in the layout of this project's optimiser."""
    kept = {key: entry[key] for key in _STATE_KEYS[name]}
    return kept | {"step": torch.tensor(float(entry["step"]))} if name == "adam" else kept


def restore_optimiser(optimiser: torch.optim.Optimizer, converted: Mapping[str, Any]) -> None:
    """Load a continuation's state into `optimiser`, whose groups are those of `groups_of`."""
    state = optimiser.state_dict()
    groups = [
        {**group, "step": steps} if "step_counter" in group else group
        for group, steps in zip(state["param_groups"], converted["steps"], strict=True)
    ]
    optimiser.load_state_dict({"state": converted["state"], "param_groups": groups})
