"""Check that the inverter benchmark compares equal computations."""

from __future__ import annotations

import pytest
import torch

from pipeline.inversion import invert
from pipeline.models import load_checkpoint
from tests.bench.inverter import PEAK, SECONDS, SIDES, operations, published_loop, summary
from tests.models.tiny import portrait, tiny_checkpoint


def test_the_published_loop_gives_equal_results() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder"))
    faces = torch.cat([portrait(), portrait().flip(3)])
    codes, created = published_loop(model, faces, steps=2)
    result = invert(model, faces, steps=2)
    assert torch.allclose(result.w_plus, codes, atol=1e-5)
    assert torch.allclose(result.images, created[-1], atol=1e-5)


def test_ratios_say_how_many_times_ours_is_better() -> None:
    place = {"batch": 4, "steps": 5, "allocator": "kept"}
    rows = [
        {"side": "published", **place, SECONDS: 6.0, PEAK: 12.0},
        {"side": "bfloat16", **place, SECONDS: 1.5, PEAK: 2.0},
    ]
    counted = {"published": 240_000_000_000, "bfloat16": 210_000_000_000}
    record = summary(rows, counted, {"float32": 80.0, "bfloat16": 200.0})
    case = "bfloat16, batch 4, steps 5, allocator kept"
    assert record["published_over_ours"] == {case: {"faster": 4.0, "smaller": 6.0}}
    assert [row["share_of_peak"] for row in record["rows"]] == [0.5, 0.7]


def test_operations_are_counted_without_computing() -> None:
    model = load_checkpoint(tiny_checkpoint("ResNetBackboneEncoder")).to("meta")
    published, float32, bfloat16 = (operations(side, model) for side in SIDES)
    assert published == pytest.approx(float32, rel=0.05)
    assert bfloat16 == pytest.approx(float32, rel=0.05)
