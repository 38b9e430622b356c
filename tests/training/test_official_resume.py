"""Continue a training of the official e4e program from its file."""

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


def official_state(optimiser: torch.optim.Optimizer, official: str) -> dict[str, Any]:
    """Return the state in the official optimisers' layout: weight group, a step per weight."""
    state = optimiser.state_dict()
    steps = {n: group.get("step") for group in state["param_groups"] for n in group["params"]}
    entries = {number: copy.deepcopy(entry) for number, entry in state["state"].items()}
    if official == "ranger":
        entries = {number: entry | {"step": steps[number]} for number, entry in entries.items()}
    return {"state": entries, "param_groups": [{"lr": 1e-4, "params": list(steps)}]}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Return a function that writes an official file of 25 batches of 2 and its config."""

    def save(entries: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
        torch.manual_seed(0)
        network = LatentDiscriminator()
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-5)
        network(torch.randn(3, 512)).sum().backward()
        optimiser.step()
        options = {
            "batch_size": 2, "progressive_steps": [0, 20, 24, 28], "progressive_start": 20,
            "progressive_step_every": 4, "optim_name": "ranger",
        }  # fmt: skip
        checkpoint = tiny_checkpoint("ProgressiveBackboneEncoder", **options) | {
            "global_step": 24,
            "best_val_loss": 0.5,
            "discriminator_state_dict": network.state_dict(),
            "discriminator_optimizer_state_dict": optimiser.state_dict(),
        }
        torch.save(checkpoint | (entries or {}), tmp_path / "e4e.pt")
        given = {"model": str(tmp_path / "e4e.pt"), "lpips": 0, "identity": 0, "steps": 1}
        return TrainConfig(input="in", output="out", **given | settings)

    return save


def run_steps(encoder: torch.nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    """Run steps with seeded gradients; the last head, before its stage, has none."""
    for seed in seeds:
        torch.manual_seed(seed)
        for weight in encoder.parameters():
            weight.grad = torch.randn_like(weight)
        for weight in late_heads(encoder)[-1].parameters():
            weight.grad = None
        optimisers.step(optimiser)


def test_stage_and_discriminator_come_from_the_file(saved: Saved) -> None:
    config = saved()
    model = load_model(str(config.model))
    previous = continuation_of(config, model)
    assert previous is not None
    # Step 24 is stored before it is counted: 25 batches of 2 are done.
    assert (previous.images, previous.stages) == (50, Stages(40, 8))
    plan = encoder_plan(config, model, previous)
    assert previous.facts(plan.stages, 4, adversary=True) == {
        "images": 50,
        "stage": 2,
        "last_stage": 3,
        "discriminator": "restored",
        "optimiser": "new: the file has none",
    }
    task = make_task(config, model, FACES)
    task.begin(torch.optim.SGD(model.encoder.parameters(), lr=1.0))
    assert task.adversary is not None
    own: dict[str, Tensor] = task.adversary.network.state_dict()
    assert previous.discriminator is not None
    assert all(torch.equal(own[key], value) for key, value in previous.discriminator.items())
    assert len(task.adversary.optimiser.state_dict()["state"]) == len(own)
    assert [task._stage(TrainState(0, images, 100)) for images in (0, 5, 6, 100)] == [2, 2, 3, 3]


class Heads(nn.Module):
    """Encoder with a body and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.styles = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


@pytest.mark.parametrize("name", ["adam", "ranger"])
def test_official_optimiser_state_is_restored(name: Any) -> None:
    encoder = Heads()
    groups = optimisers.groups_of(encoder, late_heads(encoder))
    before = optimisers.make_optimiser(name, groups, 1e-3)
    run_steps(encoder, before, range(7))
    other = copy.deepcopy(encoder)
    state, why = optimiser_state(official_state(before, name), {"optim_name": name}, name, other)
    assert (state is not None, why) == (True, "")
    groups = optimisers.groups_of(other, late_heads(other))
    after = optimisers.make_optimiser(name, groups, 1e-3)
    restore_optimiser(after, state or {})
    run_steps(encoder, before, range(7, 14))
    run_steps(other, after, range(7, 14))
    for weight, other_weight in zip(encoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, other_weight)


def test_unfitting_state_is_reported_and_left_out(saved: Saved) -> None:
    odd = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []}
    config = saved({"optimizer": odd, "discriminator_state_dict": None})
    model = load_model(str(config.model))
    previous = continuation_of(config, model)
    assert previous is not None
    facts = previous.facts(previous.stages, 4, adversary=True)
    assert facts["discriminator"] == "new: the file has none"
    assert facts["optimiser"] == "new: the file's belongs to other weights"
    damaged = continuation_of(saved({"optimizer": {"state": {0: [3]}}}), model)
    assert damaged is not None
    assert damaged.without_optimiser == "the file's belongs to other weights"
    adam = continuation_of(config.model_copy(update={"optimiser": "adam"}), model)
    assert adam is not None
    assert adam.without_optimiser == "the file's is ranger, this training's is adam"


def test_discriminator_of_another_shape_is_refused(saved: Saved) -> None:
    config = saved({"discriminator_state_dict": {"mlp.0.weight": torch.zeros(2, 2)}})
    with pytest.raises(ModelError, match="not of e4e's architecture: 8 of 8 entries differ"):
        continuation_of(config, load_model(str(config.model)))


def test_uneven_stages_must_be_given(saved: Saved) -> None:
    uneven = tiny_checkpoint("ProgressiveBackboneEncoder", progressive_steps=[0, 5, 6, 9])
    config = saved({"opts": uneven["opts"]})
    model = load_model(str(config.model))
    with pytest.raises(ConfigError, match="give the stages with"):
        continuation_of(config, model)
    with_stages = config.model_copy(update={"progressive_start": 10, "progressive_every": 5})
    previous = continuation_of(with_stages, model)
    assert encoder_plan(with_stages, model, previous).stages == Stages(10, 5)


def test_bundle_continues_at_its_trained_images(saved: Saved, tmp_path: Path) -> None:
    model: RestyleModel = load_model(str(saved().model))
    save_bundle(model, str(tmp_path / "finished"))
    finished = TrainConfig(input="in", output="out", model=str(tmp_path / "finished"))
    assert continuation_of(finished, model) is None  # all rows are free, as in a published file
    model.card.notes.update({"trained_images": 170_000, "images_before": 10})  # type: ignore[attr-defined]
    save_bundle(model, str(tmp_path / "bundle"))
    config = TrainConfig(input="in", output="out", model=str(tmp_path / "bundle"))
    loaded = load_model(str(config.model))
    previous = continuation_of(config, loaded)
    assert previous is not None
    assert previous.images == 170_010
    plan = encoder_plan(config, loaded, previous)
    assert plan.stages is not None
    assert plan.stages.at(plan.images_before, 18) == 1


def test_other_models_have_no_earlier_training(saved: Saved, tmp_path: Path) -> None:
    torch.save(tiny_checkpoint("ProgressiveBackboneEncoder"), tmp_path / "published.pt")
    config = TrainConfig(input="in", output="out", model=str(tmp_path / "published.pt"))
    model = load_model(str(config.model))
    assert continuation_of(config, model) is None
    assert encoder_plan(config, model).stages is None
    fresh = saved(encoder_type="ProgressiveBackboneEncoder")
    assert continuation_of(fresh, model) is None


def test_earlier_checkpoint_keeps_its_stages(saved: Saved) -> None:
    config = saved()
    task = make_task(config, load_model(str(config.model)), FACES)
    task.restore({})
    assert (task.plan.images_before, task._stage(TrainState(0, 1000, 2000))) == (0, 0)
    assert task.state()["defaults"] == 2
