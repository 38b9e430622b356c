import json

import numpy as np
import pytest
import torch

from pipeline.demo import directions
from pipeline.editing.directions import built_in_names, read_direction
from pipeline.editing.w_space import w_space_of
from pipeline.models import load_model
from pipeline.training.latent_pairs import LatentPairs


def face(lift: float, turn: float = 0.0) -> np.ndarray:
    """Return landmarks with eyes 100 px apart and mouth corners `lift` px above its middle."""
    points = np.zeros((68, 2), np.float32)
    points[36:42], points[42:48] = (-50, 0), (50, 0)
    points[48:68] = (0, 80)
    points[[48, 54]] = [(-30, 80 - lift), (30, 80 - lift)]
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (points @ spin).astype(np.float32)


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_smile_is_measured_across_the_eye_line(turn):
    assert directions.smile_of(face(20, turn)) == pytest.approx((0.2, 0.6, 0.0), abs=1e-5)


@pytest.mark.parametrize("penalty", [None, 0.01])
def test_fit_finds_the_axis_of_a_label(penalty):
    rng = np.random.default_rng(0)
    codes, axis = rng.standard_normal((2000, 16)), np.eye(16)[3]
    direction = directions.fit(codes, codes @ axis, penalty)
    assert direction @ axis > 0.98
    assert directions.correlation(direction, codes, codes @ axis) > 0.98


def test_age_leaves_the_axis_of_sex_out():
    rng = np.random.default_rng(0)
    age, sex = np.repeat([1.0, -1.0], 40), np.tile([1.0, 1.0, 1.0, -1.0], 20)
    codes = rng.standard_normal((80, 16)) * 0.01
    codes[:, 0] += age
    codes[:, 1] += 3 * sex
    direction = directions.fit_age(codes, age, sex)
    assert direction[0] > 0.99
    assert abs(direction[1]) < 0.05


def test_judged_pairs_are_both_ages_of_both_sexes():
    numbers, age, sex = directions.read_ages()
    assert len(set(numbers)) == len(numbers) == 132
    assert {(one, other) for one, other in zip(age, sex, strict=True)} == {
        (1, 1), (1, -1), (-1, 1), (-1, -1)
    }  # fmt: skip


def test_command_writes_three_directions(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (280, 3, 16, 16), dtype=torch.uint8)
    pairs = LatentPairs(torch.randn(280, 512), images)
    monkeypatch.setattr(directions, "load_pairs", lambda *_: pairs)
    monkeypatch.setattr(directions, "EVERY", 28)
    (tmp_path / "pairs-0.tar").touch()
    assert directions.main([str(tmp_path), str(tmp_path / "out")]) == 0
    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [score["direction"] for score in scores] == ["smile", "pose", "age"]
    for score in scores:
        direction = read_direction(str(tmp_path / "out" / f"{score['direction']}.safetensors"))
        assert direction.rows.shape == (1, 512)
        assert direction.facts["faces"] == score["faces"]


def test_built_in_directions_fit_the_demo_model():
    model = w_space_of(load_model("demo"))
    assert built_in_names() == ["age", "pose", "smile"]
    for name in built_in_names():
        direction = read_direction(name)
        assert direction.check_model(model) == ""
        assert np.linalg.norm(direction.rows) == pytest.approx(1, abs=1e-5)
