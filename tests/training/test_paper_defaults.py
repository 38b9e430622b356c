import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.models import load_checkpoint
from pipeline.models.encoders import OFFICIAL_ENCODERS
from pipeline.training.config import TrainConfig
from pipeline.training.paper_defaults import (
    STAGES,
    adversary_plan,
    earlier_plan,
    encoder_plan,
    feature_networks,
    image_weights,
)
from tests.models.tiny import tiny_checkpoint


def config(**settings) -> TrainConfig:
    return TrainConfig(input="in", output="out", model="m", **settings)


@pytest.fixture(scope="module")
def faces():
    return load_checkpoint(tiny_checkpoint("BackboneEncoder"))


@pytest.fixture(scope="module")
def churches():
    checkpoint = tiny_checkpoint("ResNetProgressiveBackboneEncoder", dataset_type="church_encode")
    return load_checkpoint(checkpoint)


def test_faces_use_identity_and_others_moco(faces, churches):
    assert image_weights(config(), faces).identity == 0.1
    weights = image_weights(config(moco_weights="moco.pt"), churches)
    assert (weights.identity, weights.moco) == (0, 0.5)
    assert image_weights(config(), churches).moco == 0


def test_only_e4e_has_stages_and_discriminator(faces, churches):
    e4e = encoder_plan(config(encoder_type="fresh"), churches)
    assert e4e.stages == STAGES
    assert e4e.delta_norm == 2e-4
    assert adversary_plan(config(r1=5.0), churches).r1 == 5.0
    psp = encoder_plan(config(), faces)
    assert (psp.stages, psp.delta_norm) == (None, 0.0)
    assert adversary_plan(config(), faces) is None


@pytest.mark.parametrize("encoder", [kind.__name__ for kind in OFFICIAL_ENCODERS])
def test_offset_encoders_are_trained_as_e4e(encoder):
    model = load_checkpoint(tiny_checkpoint(encoder, input_channels=3))
    for head in model.encoder.styles[1:]:
        head.register_forward_hook(lambda _head, _images, row: 0 * row)
    with torch.no_grad():
        rows = model.encoder(torch.rand(1, 3, 64, 64))
    of_e4e = torch.equal(rows[:, 1:], rows[:, :1].expand(-1, 3, -1))
    plan = encoder_plan(config(encoder_type=encoder), model)
    assert (plan.stages is not None) == (plan.delta_norm > 0) == of_e4e
    assert (adversary_plan(config(), model) is not None) == of_e4e


def test_config_overrides_the_defaults(churches):
    settings = config(delta_norm=0, realness=0, l2=2, progressive_start=10, progressive_every=5)
    plan = encoder_plan(settings, churches)
    assert (plan.delta_norm, plan.images.l2, plan.stages.start) == (0, 2, 10)
    assert adversary_plan(settings, churches) is None


def test_stages_need_an_e4e_encoder(faces):
    with pytest.raises(ConfigError, match=r"--progressive-start .* not for .* BackboneEncoder"):
        encoder_plan(config(progressive_start=10), faces)


def test_default_steps_depend_on_the_encoder(faces):
    assert encoder_plan(config(), faces).steps == 5
    single_pass = load_checkpoint(tiny_checkpoint("BackboneEncoder", input_channels=3))
    assert encoder_plan(config(), single_pass).steps == 1
    with pytest.raises(ConfigError, match="steps must be 1"):
        encoder_plan(config(steps=3), single_pass)


def test_only_networks_in_use_are_loaded(faces):
    weights = image_weights(config(identity=0), faces)
    assert feature_networks(config(identity=0), weights, "cpu") == {}


def test_missing_moco_file_error_names_its_kind(churches):
    settings = config(moco_weights="nowhere.pth")
    with pytest.raises(ModelError, match=r"no MoCo weights at nowhere\.pth"):
        feature_networks(settings, image_weights(settings, churches), "cpu")


def test_cartoons_use_the_published_weights(faces):
    cartoons = load_checkpoint(tiny_checkpoint(dataset_type="toonify"))
    plan = encoder_plan(config(), cartoons)
    assert (plan.images.identity, plan.w_norm) == (1.0, 0.025)
    settings = encoder_plan(config(identity=0.5, w_norm=0), cartoons)
    assert (settings.images.identity, settings.w_norm) == (0.5, 0)
    assert encoder_plan(config(), faces).w_norm == 0
    before = earlier_plan(config(), cartoons)
    assert (before.images.identity, before.w_norm) == (0.1, 0)


def test_finished_e4e_encoder_has_all_rows_free(churches):
    plan = encoder_plan(config(), churches)
    assert (plan.stages, plan.images_before) == (None, 0)
    assert earlier_plan(config(), churches).stages == STAGES
