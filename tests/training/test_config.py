import re

import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.models import ENCODER_TYPES
from pipeline.training.config import TrainConfig, load_train_config

PATHS = {"input": "in", "output": "out"}


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("input: in\noutput: out\nmodel: demo\nsteps: 3\nbatch: 4\n")
    config = load_train_config(str(file), {"steps": "2", "batch": None})
    assert (config.steps, config.batch) == (2, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "pass --model or --generator"),
        ({"model": "demo", "generator": "g.pt"}, "--generator, not both"),
        ({"generator": "g.pt"}, "needs an --encoder-type"),
        ({"model": "demo", "backbone": "b.pt"}, "--backbone needs an --encoder-type"),
        ({"model": "demo", "one_pass": True}, "--one-pass needs an --encoder-type"),
        ({"model": "demo", "moco": 0.5}, "--moco-weights"),
        ({"model": "demo", "progressive_every": 5}, "--progressive-start"),
        ({"model": "demo", "workers": 3}, "--batch 8 is not a multiple of --workers 3"),
        ({"model": "demo", "images": 7}, "--images 7 is less than --batch 8"),
        ({"model": "demo", "degrade": "fog:2"}, "'fog' is not a degradation"),
        ({"model": "demo", "lpipz": 1}, "did you mean 'lpips'"),
        ({"model": "demo", "rate": -1}, "--rate: "),
    ],
)
def test_contradicting_settings_give_one_clear_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_train_config(None, {**PATHS, **settings})
    assert "\n" not in str(error.value)


def test_help_lists_every_encoder_type():
    message = str(TrainConfig.model_fields["encoder_type"].description)
    assert set(ENCODER_TYPES) <= set(re.findall(r"\w+", message))


def test_credentials_in_a_uri_are_refused():
    with pytest.raises(InputError, match="credentials"):
        load_train_config(None, {**PATHS, "model": "demo", "codes": "s3://key:secret@bucket/x"})
