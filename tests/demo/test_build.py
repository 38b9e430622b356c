import dataclasses
import json

import pytest
import torch

from pipeline.demo.build import build, draw_cartoons
from pipeline.demo.discriminator import DiscriminatorPlan
from pipeline.demo.plans import CARTOON, FACES, GrowthPlan
from pipeline.errors import FingerprintError
from pipeline.storage import Store
from pipeline.training.latent_pairs import LatentPairs
from pipeline.training.losses import ImageWeights
from pipeline.training.train_log import read_reports
from pipeline.training.trainer import LoopPlan

# On a machine with much else to do its trainings take minutes.
pytestmark = pytest.mark.timeout(900)
CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
GROWN = {**CHANNELS, 64: 4}
GENERATOR = LoopPlan(images=8, batch=4, max_lr=2e-2, report_every=8, save_every=8)
ENCODER = LoopPlan(images=48, batch=4, max_lr=3e-3, warmup_steps=4, report_every=48, save_every=48)


def small(plan):
    rounds = dataclasses.replace(plan.rounds, steps=2, images=ImageWeights(l2=1.0))
    growth = (
        GrowthPlan(GENERATOR, GROWN, DiscriminatorPlan(start=0.4, every=1)) if plan.growth else None
    )
    return dataclasses.replace(
        plan,
        generator=GENERATOR,
        growth=growth,
        encoder=ENCODER,
        rounds=rounds,
        channels=CHANNELS,
        held_out=8,
    )


@pytest.fixture(scope="module")
def photos() -> LatentPairs:
    torch.manual_seed(0)
    w = torch.randn(24, 512)
    colour = (127 + 60 * w[:, :3]).clamp(0, 255).byte()
    return LatentPairs(w, colour[:, :, None, None].expand(-1, -1, 64, 64).contiguous())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def base(photos, folder):
    """Build a demo model with a very short training."""
    return build(small(FACES), photos, folder)


def test_card_has_the_metrics_of_all_stages(base):
    model, seconds = base
    assert model.name == "demo"
    assert "research" in model.licence
    assert model.card.notes["pairs"] == 16
    assert len(model.card.notes["encoder"]["held_out_l2"]) == 2
    assert model.card.notes["generator"]["images"] == 8
    assert model.card.notes["growth"]["realness"] > 0
    assert model.card.notes["growth"]["discriminator"] > 0
    assert set(seconds) == {"generator", "growth", "encoder"}
    for stage, took in seconds.items():
        assert model.card.notes[stage]["seconds"] == took


def test_generator_grows_and_encoder_input_stays_small(base):
    model, _ = base
    assert (model.generator_size, model.n_styles, model.input_size) == (64, 10, (32, 32))


def test_finished_stage_keeps_its_seconds(base, photos, folder):
    store, (_, seconds) = Store(folder), base
    log = read_reports(store, "encoder")
    slow = [{"images": 4, "seconds": 1_000.0}, *log]
    store.put("encoder.jsonl", "".join(json.dumps(line) + "\n" for line in slow).encode())
    model, again = build(small(FACES), photos, folder)
    assert again["generator"] == seconds["generator"] > 0
    assert again["encoder"] == pytest.approx(seconds["encoder"] + 1_000)
    assert model.card.notes["encoder"]["seconds"] == again["encoder"]


def test_folder_of_another_plan_is_refused(base, photos, folder):
    assert base
    faster = dataclasses.replace(GENERATOR, max_lr=3e-2)
    with pytest.raises(FingerprintError, match="peak_rate"):
        build(dataclasses.replace(small(FACES), generator=faster), photos, folder)


def test_later_steps_lower_the_distance(base):
    curve = base[0].card.notes["encoder"]["held_out_l2"]
    assert curve[-1] < curve[0]


def test_cached_cartoons_match_images_and_size(photos, tmp_path):
    dark = LatentPairs(photos.w, 255 - photos.images)
    expected = draw_cartoons(dark, 16, str(tmp_path / "fresh")).targets
    draw_cartoons(photos, 16, str(tmp_path / "used"))
    assert torch.equal(draw_cartoons(dark, 16, str(tmp_path / "used")).targets, expected)
    assert draw_cartoons(dark, 8, str(tmp_path / "used")).targets.shape == (24, 3, 8, 8)


def test_cartoon_model_keeps_the_base_w_space(base, photos, tmp_path):
    model, _ = base
    drawn = draw_cartoons(photos, 32, str(tmp_path))
    assert drawn.targets is not None
    assert drawn.targets.shape == (24, 3, 32, 32)
    again = draw_cartoons(photos, 32, str(tmp_path))
    assert torch.equal(again.targets, drawn.targets)
    toon, _ = build(small(CARTOON), drawn, str(tmp_path), model)
    assert toon.name == "demo-toonify"
    assert (toon.generator_size, toon.n_styles) == (32, 8)
    assert torch.equal(toon.latent_avg, model.latent_avg[:8])
    assert len(toon.card.notes["encoder"]["held_out_l2"]) == 2
