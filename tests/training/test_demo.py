import dataclasses

import pytest
import torch

from pipeline.training.demo import Drawn, build, draw_cartoons
from pipeline.training.demo_plans import CARTOON, FACES
from pipeline.training.loop import LoopPlan
from pipeline.training.losses import ImageWeights
from pipeline.training.pairs import Pairs

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
GENERATOR = LoopPlan(images=8, batch=4, peak_rate=2e-2, report_every=8, save_every=8)
ENCODER = LoopPlan(images=48, batch=4, peak_rate=3e-3, warm_up=4, report_every=48, save_every=48)


def small(plan):
    rounds = dataclasses.replace(plan.rounds, steps=2, images=ImageWeights(l2=1.0))
    return dataclasses.replace(
        plan, generator=GENERATOR, encoder=ENCODER, rounds=rounds, channels=CHANNELS, held_out=8
    )


@pytest.fixture(scope="module")
def photos() -> Drawn:
    torch.manual_seed(0)
    w = torch.randn(24, 512)
    colour = (127 + 60 * w[:, :3]).clamp(0, 255).byte()
    return Drawn(Pairs(w, colour[:, :, None, None].expand(-1, -1, 32, 32).contiguous()))


@pytest.fixture(scope="module")
def base(photos, tmp_path_factory):
    """A demo model of a minute part of the real one's training, with its folder."""
    return build(small(FACES), photos, str(tmp_path_factory.mktemp("faces")))


def test_both_stages_leave_their_figures_on_the_card(base):
    model, seconds = base
    assert model.name == "demo"
    assert "research" in model.licence
    assert model.card.notes["pairs"] == 16
    assert len(model.card.notes["encoder"]["held_out_l2"]) == 2
    assert model.card.notes["generator"]["images"] == 8
    assert set(seconds) == {"generator", "encoder"}


def test_refinement_was_learnt(base):
    curve = base[0].card.notes["encoder"]["held_out_l2"]
    assert curve[-1] < curve[0]


def test_a_cartoon_model_stays_in_the_w_space_that_it_starts_from(base, photos, tmp_path):
    model, _ = base
    large = photos.pairs.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    drawn = draw_cartoons(Pairs(photos.pairs.w, large), 32, str(tmp_path))
    assert drawn.looks is not None
    assert drawn.looks.shape == (24, 3, 32, 32)
    again = draw_cartoons(Pairs(photos.pairs.w, large), 32, str(tmp_path))
    assert torch.equal(again.looks, drawn.looks)
    toon, _ = build(small(CARTOON), drawn, str(tmp_path), model)
    assert toon.name == "demo-toonify"
    assert torch.equal(toon.latent_avg, model.latent_avg)
    assert len(toon.card.notes["encoder"]["held_out_l2"]) == 2
