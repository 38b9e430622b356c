"""Check that the inverter benchmark compares equal computations."""

from __future__ import annotations

import torch

from pipeline.inversion import invert
from pipeline.models import load_checkpoint
from tests.bench.inverter import published_loop, summary
from tests.models.tiny import portrait, tiny_checkpoint


def test_the_published_loop_gives_equal_results() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    faces = torch.cat([portrait(), portrait().flip(3)])
    codes, created = published_loop(model, faces, steps=2)
    result = invert(model, faces, steps=2)
    assert torch.allclose(result.w_plus, codes, atol=1e-5)
    assert torch.allclose(result.images, created[-1], atol=1e-5)


def test_ratios_say_how_many_times_ours_is_better() -> None:
    place = {"batch": 4, "allocator": "kept"}
    key = "cpu_seconds_per_image_and_step"
    rows = [
        {"side": "published", **place, key: 6.0, "peak_gib": 12.0},
        {"side": "ours", **place, key: 3.0, "peak_gib": 2.0},
    ]
    ratios = summary(rows)["published_over_ours"]
    assert ratios == {"batch 4, allocator kept": {"faster": 2.0, "smaller": 6.0}}
