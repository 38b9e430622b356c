import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import FingerprintError, InputError
from pipeline.inversion import invert
from pipeline.models import load_checkpoint, load_model
from pipeline.models.official_layout import read_parts
from pipeline.models.state_files import read_model_file
from pipeline.storage import Store
from pipeline.training import run
from pipeline.training.config import TrainConfig
from pipeline.training.data import CropFile, Crops, put_crops, put_index, put_pairs, read_pairs
from pipeline.training.degradations import Degrader
from pipeline.training.distributed import Group
from pipeline.training.encoder_task import EncoderPlan
from pipeline.training.losses import ImageWeights
from pipeline.training.run import (
    augmentation,
    faces_at,
    split_counts,
    train_restyle,
    write_models,
)
from pipeline.training.train_log import read_reports
from pipeline.training.trainer import Trained
from tests.models.tiny import tiny_checkpoint

TINY = {
    "steps": 2, "batch": 4, "images": 40, "held_out": 4, "optimiser": "adam", "rate": 2e-3,
    "warm_up": 2, "lpips": 0, "identity": 0, "report_every": 20, "tensorboard": False,
}  # fmt: skip


def crops_of(folder: Path, side: int, count: int) -> Crops:
    """Write crops of flat colours in two files."""
    store = Store(str(folder))
    colours = torch.randint(0, 255, (count, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    images = colours.byte().expand(-1, -1, side, side)
    files = [CropFile("a", count // 2), CropFile("b", count - count // 2)]
    put_crops(store, "a", images[: count // 2])
    put_crops(store, "b", images[count // 2 :])
    put_index(store, files, {})
    return Crops(store)


def test_training_improves_the_model_and_writes_a_bundle(tmp_path, tiny_bundle):
    config = TrainConfig(
        input="in", output=str(tmp_path / "run"), model=tiny_bundle, augment="photo", **TINY
    )
    done = train_restyle(config, crops_of(tmp_path / "crops", 64, 20), Group())
    first, last = read_reports(Store(config.output), "encoder")
    assert last["held_out_l2"][-1] < first["held_out_l2"][-1]
    trained = load_model(done["bundle"])
    assert (done["official"], done["no_official"]) == (
        None,
        "the original code has no CompactEncoder",
    )
    assert trained.card.notes["trained_images"] == done["best_images"]
    assert trained.fingerprint != load_model(tiny_bundle).fingerprint


def test_e4e_training_writes_an_official_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "original_refuses", lambda _: None)  # despite its widths
    torch.save(tiny_checkpoint("ProgressiveBackboneEncoder"), tmp_path / "start.pt")
    settings = TINY | {"images": 4, "batch": 2, "held_out": 2, "steps": 1, "report_every": 4}
    config = TrainConfig(
        input="in", output=str(tmp_path / "run"), model=str(tmp_path / "start.pt"), **settings
    )
    done = train_restyle(config, crops_of(tmp_path / "crops", 256, 4), Group())
    (line,) = read_reports(Store(config.output), "encoder")
    assert {"realness_last", "discriminator", "delta_norm_last"} <= set(line)
    official, bundle = load_model(done["official"]), load_model(done["bundle"])
    assert official.fingerprint == bundle.fingerprint
    images = torch.zeros(1, 3, 256, 256)
    assert invert(official, images, steps=1).finite.all()


def test_official_file_has_the_plans_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "original_refuses", lambda _: None)
    model = load_checkpoint(tiny_checkpoint())
    config = TrainConfig(input="in", output=str(tmp_path), model="faces.pt")
    earlier = EncoderPlan(images=ImageWeights(l2=2.0), w_norm=0.5)  # not the present defaults
    trained = Trained(model.encoder, model.encoder, best_images=8)
    done = write_models(config, earlier, model, trained, crops=4)
    options = read_parts(read_model_file(str(done["official"])), "official").options
    assert (options["l2_lambda"], options["lpips_lambda"]) == (2.0, 0.0)
    assert options["w_norm_lambda"] == 0.5


def test_training_continues_only_with_equal_settings(tmp_path, tiny_bundle):
    config = TrainConfig(
        input="in", output=str(tmp_path / "run"), model=tiny_bundle, **TINY | {"images": 8}
    )
    crops = crops_of(tmp_path / "crops", 64, 20)
    train_restyle(config, crops, Group())
    checkpoint = (tmp_path / "run" / "encoder.pt").read_bytes()
    longer = config.model_copy(update={"images": 16})
    with pytest.raises(FingerprintError, match="seed: 0 at the start, 1 now"):
        train_restyle(longer.model_copy(update={"seed": 1}), crops, Group())
    with pytest.raises(FingerprintError, match="the images in 'in' have changed"):
        train_restyle(longer, crops_of(tmp_path / "other_crops", 64, 12), Group())
    assert (tmp_path / "run" / "encoder.pt").read_bytes() == checkpoint
    train_restyle(longer, crops, Group())
    assert read_reports(Store(config.output), "encoder")[-1]["images"] == 16


def test_last_crops_are_held_out(tmp_path):
    crops = crops_of(tmp_path, 8, 9)
    assert split_counts(crops, 2) == [4, 3]
    assert split_counts(crops, 6) == [3]
    with pytest.raises(InputError, match="the other 0 do not fill a batch of 1"):
        split_counts(crops, 9)
    with pytest.raises(InputError, match=r"9 faces, 6 of them held out .* a batch of 4"):
        split_counts(crops, 6, batch=4)


def test_degradation_changes_inputs_but_not_targets(tmp_path):
    crops, index = crops_of(tmp_path, 16, 6), torch.tensor([4, 1])
    plain = faces_at(crops, index)
    assert plain.input is plain.target
    damaged = faces_at(crops, index, Degrader("noise:20", 1))
    assert torch.equal(damaged.target, plain.target)
    assert not torch.equal(damaged.input, damaged.target)
    later = faces_at(crops, torch.tensor([1, 5, 4]), Degrader("noise:20", 1))
    assert torch.equal(later.input[[2, 0]], damaged.input)
    config = TrainConfig(input="in", output="out", model="m", degrade="noise:20")
    torch.manual_seed(0)
    flipped = augmentation(config)(damaged)
    assert torch.equal(flipped.target, plain.target)  # flat colours
    assert flipped.input.shape == damaged.input.shape


def test_encoder_learns_the_targets_of_pairs(tmp_path, tiny_bundle):
    sources, targets = (crops_of(tmp_path / name, 64, 20) for name in ("sources", "targets"))
    numbers = torch.arange(16)
    put_pairs(sources.store, torch.stack([numbers, 19 - numbers], dim=1))
    pairs = read_pairs(sources, targets)
    config = TrainConfig(
        input="in", target="to", output=str(tmp_path / "run"), model=tiny_bundle,
        degrade="downsample:4", **TINY,
    )  # fmt: skip
    train_restyle(config, pairs, Group())
    first, last = read_reports(Store(config.output), "encoder")
    assert last["held_out_l2"][-1] < first["held_out_l2"][-1]
    settings = json.loads((tmp_path / "run" / "_train.json").read_text())
    assert (settings["degrade"], settings["origin"]["crops"]) == ("downsample:4", "sources+targets")
