"""A training goes on with what the official e4e program has left in its file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models import RestyleModel, load_model, save_bundle
from pipeline.training import optimisers
from pipeline.training.config import TrainConfig
from pipeline.training.e4e import LatentDiscriminator, Stages, late_heads
from pipeline.training.encoder_task import Faces
from pipeline.training.official_resume import continuation_of, optimiser_state, restore_optimiser
from pipeline.training.paper_defaults import encoder_plan
from pipeline.training.run import make_task
from pipeline.training.trainer import TrainState
from tests.models.tiny import tiny_checkpoint

FACES = Faces(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
Saved = Callable[..., TrainConfig]


def left_by(optimiser: torch.optim.Optimizer, official: str) -> dict[str, Any]:
    """The state as the official optimisers keep it: one group, a step for each weight."""
    state = optimiser.state_dict()
    steps = {n: group.get("step") for group in state["param_groups"] for n in group["params"]}
    entries = {number: copy.deepcopy(entry) for number, entry in state["state"].items()}
    if official == "ranger":
        entries = {number: entry | {"step": steps[number]} for number, entry in entries.items()}
    return {"state": entries, "param_groups": [{"lr": 1e-4, "params": list(steps)}]}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Write an official e4e training file of 25 batches of 2; the config that goes on with it."""

    def save(entries: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
        torch.manual_seed(0)
        network = LatentDiscriminator()
        judge = torch.optim.Adam(network.parameters(), lr=2e-5)
        network(torch.randn(3, 512)).sum().backward()
        judge.step()
        options = {
            "batch_size": 2, "progressive_steps": [0, 20, 24, 28], "progressive_start": 20,
            "progressive_step_every": 4, "optim_name": "ranger",
        }  # fmt: skip
        checkpoint = tiny_checkpoint("ProgressiveBackboneEncoder", **options) | {
            "global_step": 24,
            "best_val_loss": 0.5,
            "discriminator_state_dict": network.state_dict(),
            "discriminator_optimizer_state_dict": judge.state_dict(),
        }
        torch.save(checkpoint | (entries or {}), tmp_path / "e4e.pt")
        given = {"model": str(tmp_path / "e4e.pt"), "lpips": 0, "identity": 0, "steps": 1}
        return TrainConfig(input="in", output="out", **given | settings)

    return save


def moved(encoder: torch.nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    """Steps on gradients that follow from the seed; the last head has none, as before its stage."""
    for seed in seeds:
        torch.manual_seed(seed)
        for weight in encoder.parameters():
            weight.grad = torch.randn_like(weight)
        for weight in late_heads(encoder)[-1].parameters():
            weight.grad = None
        optimisers.step(optimiser)


def test_stage_and_discriminator_are_those_of_the_file(saved: Saved) -> None:
    config = saved()
    model = load_model(str(config.model))
    found = continuation_of(config, model)
    assert found is not None
    # Batch 24 is done and its step not yet counted, so that 25 batches of 2 have been seen.
    assert (found.images, found.stages) == (50, Stages(40, 8))
    plan = encoder_plan(config, model, found)
    assert found.facts(plan.stages, 4, adversary=True) == {
        "images": 50,
        "stage": 2,
        "last_stage": 3,
        "discriminator": "restored",
        "optimiser": "new: the file has none",
    }
    task = make_task(config, model, FACES)
    task.begin(torch.optim.SGD(model.encoder.parameters(), lr=1.0))
    assert task.adversary is not None
    mine: dict[str, Tensor] = task.adversary.network.state_dict()
    assert found.discriminator is not None
    assert all(torch.equal(mine[key], value) for key, value in found.discriminator.items())
    assert len(task.adversary.optimiser.state_dict()["state"]) == len(mine)
    assert [task._stage(TrainState(0, images, 100)) for images in (0, 5, 6, 100)] == [2, 2, 3, 3]


class Heads(nn.Module):
    """A body and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.styles = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


@pytest.mark.parametrize("name", ["adam", "ranger"])
def test_an_official_optimiser_goes_on(name: Any) -> None:
    encoder = Heads()
    groups = optimisers.groups_of(encoder, late_heads(encoder))
    before = optimisers.make_optimiser(name, groups, 1e-3)
    moved(encoder, before, range(7))
    other = copy.deepcopy(encoder)
    state, why = optimiser_state(left_by(before, name), {"optim_name": name}, name, other)
    assert (state is not None, why) == (True, "")
    groups = optimisers.groups_of(other, late_heads(other))
    after = optimisers.make_optimiser(name, groups, 1e-3)
    restore_optimiser(after, state or {})
    moved(encoder, before, range(7, 14))
    moved(other, after, range(7, 14))
    for one, two in zip(encoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_does_not_fit_is_left_new_and_said(saved: Saved) -> None:
    odd = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []}
    config = saved({"optimizer": odd, "discriminator_state_dict": None})
    model = load_model(str(config.model))
    found = continuation_of(config, model)
    assert found is not None
    facts = found.facts(found.stages, 4, adversary=True)
    assert facts["discriminator"] == "new: the file has none"
    assert facts["optimiser"] == "new: the file's belongs to other weights"
    adam = continuation_of(config.model_copy(update={"optimiser": "adam"}), model)
    assert adam is not None
    assert adam.without_optimiser == "the file's is ranger, this training's is adam"


def test_a_foreign_discriminator_is_refused(saved: Saved) -> None:
    config = saved({"discriminator_state_dict": {"mlp.0.weight": torch.zeros(2, 2)}})
    with pytest.raises(ModelError, match="not of e4e's architecture: 8 of 8 entries differ"):
        continuation_of(config, load_model(str(config.model)))


def test_uneven_stages_are_asked_for(saved: Saved) -> None:
    uneven = tiny_checkpoint("ProgressiveBackboneEncoder", progressive_steps=[0, 5, 6, 9])
    config = saved({"opts": uneven["opts"]})
    model = load_model(str(config.model))
    with pytest.raises(ConfigError, match="give the stages with"):
        continuation_of(config, model)
    asked = config.model_copy(update={"progressive_start": 10, "progressive_every": 5})
    found = continuation_of(asked, model)
    assert encoder_plan(asked, model, found).stages == Stages(10, 5)


def test_a_bundle_goes_on_where_it_was_trained_to(saved: Saved, tmp_path: Path) -> None:
    model: RestyleModel = load_model(str(saved().model))
    save_bundle(model, str(tmp_path / "finished"))
    finished = TrainConfig(input="in", output="out", model=str(tmp_path / "finished"))
    assert continuation_of(finished, model) is None  # all rows are free, as in a published file
    model.card.notes.update({"trained_images": 170_000, "images_before": 10})  # type: ignore[attr-defined]
    save_bundle(model, str(tmp_path / "bundle"))
    config = TrainConfig(input="in", output="out", model=str(tmp_path / "bundle"))
    loaded = load_model(str(config.model))
    found = continuation_of(config, loaded)
    assert found is not None
    assert found.images == 170_010
    plan = encoder_plan(config, loaded, found)
    assert plan.stages is not None
    assert plan.stages.at(plan.images_before, 18) == 1


def test_other_starts_have_no_training_before_them(saved: Saved, tmp_path: Path) -> None:
    torch.save(tiny_checkpoint("ProgressiveBackboneEncoder"), tmp_path / "published.pt")
    config = TrainConfig(input="in", output="out", model=str(tmp_path / "published.pt"))
    model = load_model(str(config.model))
    assert continuation_of(config, model) is None
    assert encoder_plan(config, model).stages is None
    fresh = saved(encoder_type="ProgressiveBackboneEncoder")
    assert continuation_of(fresh, model) is None


def test_an_earlier_checkpoint_keeps_its_stages(saved: Saved) -> None:
    config = saved()
    task = make_task(config, load_model(str(config.model)), FACES)
    task.restore({})
    assert (task.plan.images_before, task._stage(TrainState(0, 1000, 2000))) == (0, 0)
    assert task.state()["defaults"] == 2
