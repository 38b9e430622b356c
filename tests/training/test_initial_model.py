import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.models import load_checkpoint, treatment_for
from pipeline.models.encoders import ResNet34, ResNetBackboneEncoder
from pipeline.models.official import official_checkpoint
from pipeline.training.config import TrainConfig
from pipeline.training.initial_model import (
    load_backbone,
    mapped_codes,
    start_digest,
    starting_model,
)
from pipeline.training.paper_defaults import image_weights
from tests.models.tiny import CHANNELS, WIDTHS, tiny_checkpoint


def config(**settings) -> TrainConfig:
    return TrainConfig(input="in", output="out", **settings)


@pytest.fixture
def generator_file(tmp_path):
    """Write a small StyleGAN2 in the published layout, without latent_avg."""
    state = {
        key.removeprefix("decoder."): value
        for key, value in tiny_checkpoint()["state_dict"].items()
        if key.startswith("decoder.")
    }
    path = tmp_path / "stylegan2-tiny.pt"
    torch.save({"g_ema": state}, path)
    return str(path)


def test_generator_file_gets_a_new_encoder(generator_file):
    settings = config(
        generator=generator_file, encoder_type="ResNetBackboneEncoder", domain="church"
    )
    model = starting_model(settings)
    assert model.architecture.channels == CHANNELS
    assert (model.n_styles, model.input_channels, model.domain) == (4, 6, "church")
    assert (
        model.latent_avg.abs().sum() > 0
    )  # the mean of mapped codes, as the file has no latent_avg
    assert torch.equal(model.latent_avg[0], model.latent_avg[3])


def test_new_single_pass_encoder_takes_three_channels(generator_file, tiny_bundle):
    settings = {"encoder_type": "ResNetBackboneEncoder", "one_pass": True}
    from_file = starting_model(config(generator=generator_file, **settings))
    from_model = starting_model(config(model=tiny_bundle, **settings))
    for model in (from_file, from_model):
        assert model.single_pass
        assert model.encoder.conv1.weight.shape[1] == 3


def test_given_domain_decides_crops_losses_and_card(tiny_bundle, tmp_path):
    settings = {"domain": "church", "moco_weights": "m.pth"}
    torch.save(tiny_checkpoint(), tmp_path / "faces.pt")
    for source in (tiny_bundle, str(tmp_path / "faces.pt")):
        model = starting_model(config(model=source, **settings))
        assert (model.domain, model.card.domain) == ("church", "church")
        assert treatment_for(model).prealigned  # no face detection
        weights = image_weights(config(model=source, **settings), model)
        assert (weights.identity, weights.moco) == (0, 0.5)


def test_domain_decides_official_encoder_input_size(tiny_bundle, tmp_path):
    torch.save(tiny_checkpoint("ResNetBackboneEncoder"), tmp_path / "any.pt")
    wide = starting_model(config(model=str(tmp_path / "any.pt"), domain="cars"))
    assert wide.input_size == (192, 256)
    with pytest.raises(ConfigError, match=r"are cropped to 192x256, but .* 'tiny' takes 64x64"):
        starting_model(config(model=tiny_bundle, domain="cars"))
    fresh = config(model=tiny_bundle, domain="cars", encoder_type="ResNetBackboneEncoder")
    assert starting_model(fresh).input_size == (192, 256)


def test_start_digest_covers_only_given_weights(tiny_bundle):
    fresh = config(model=tiny_bundle, encoder_type="CompactEncoder")
    assert start_digest(fresh, starting_model(fresh)) == start_digest(fresh, starting_model(fresh))
    going_on, model = config(model=tiny_bundle), starting_model(config(model=tiny_bundle))
    before = start_digest(going_on, model), start_digest(fresh, model)
    model.encoder.heads.bias.add_(1)
    model.generator.input.input.add_(1)
    after = start_digest(going_on, model), start_digest(fresh, model)
    assert len({*before, *after}) == 4


def test_generator_file_without_g_ema_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    settings = config(generator=str(tmp_path / "x.pt"), encoder_type="ResNetBackboneEncoder")
    with pytest.raises(ModelError, match="has no 'g_ema'"):
        starting_model(settings)


def test_new_encoder_keeps_the_models_generator(tiny_bundle):
    model = starting_model(config(model=tiny_bundle, encoder_type="CompactEncoder"))
    kept = starting_model(config(model=tiny_bundle))
    codes = torch.randn(1, model.n_styles, 512)
    with torch.no_grad():
        assert torch.equal(model.generator(codes), kept.generator(codes))
    assert not torch.equal(model.encoder.stem.weight[:1, :1], kept.encoder.stem.weight[:1, :1])


def test_bundle_and_checkpoint_have_equal_fingerprints(tmp_path):
    torch.save(tiny_checkpoint(), tmp_path / "faces.pt")
    settings = config(model=str(tmp_path / "faces.pt"), encoder_type="ResNetBackboneEncoder")
    model = starting_model(settings)
    assert load_checkpoint(official_checkpoint(model)).fingerprint == model.fingerprint


def test_real_codes_need_a_mapping_network(tiny_bundle):
    with pytest.raises(ModelError, match="pass --codes"):
        mapped_codes(starting_model(config(model=tiny_bundle)), 4)


def test_encoder_body_loads_torchs_resnet34(tmp_path):
    torch.manual_seed(0)
    encoder = ResNetBackboneEncoder(6, 1, WIDTHS)
    source = ResNet34(3, WIDTHS).state_dict()
    layers = [(layer, i) for layer, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    named = {}
    for key, value in source.items():
        if key.startswith("body."):
            _, number, name = key.split(".", 2)
            layer, index = layers[int(number)]
            key = f"layer{layer}.{index}.{name}"
        if key != "relu.weight":
            named[key] = value
    torch.save(named | {"fc.weight": torch.zeros(10, 32)}, tmp_path / "resnet34.pth")
    load_backbone(encoder, str(tmp_path / "resnet34.pth"))
    assert torch.equal(encoder.conv1.weight[:, :3], source["conv1.weight"])
    assert encoder.conv1.weight[:, 3:].abs().sum() == 0
    assert torch.equal(encoder.body[9].conv2.weight, source["body.9.conv2.weight"])


def test_backbone_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1), "layer1.norm": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x\.pth': 'conv1\.weight' is missing or has another"):
        load_backbone(ResNetBackboneEncoder(6, 1, WIDTHS), str(tmp_path / "x.pth"))


def test_damaged_backbone_error_names_its_kind(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"backbone weights '.*x\.pth': .*download it again"):
        load_backbone(ResNetBackboneEncoder(6, 1, WIDTHS), str(tmp_path / "x.pth"))
