"""What a batch asks of a GPU, counted without one, so that a change for the worse is noticed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pipeline.inversion.graphs import GraphedStep, padded_size

# A batch of 8 faces of 1024 px, one step, metrics without identity. Lower them with the code.
LAUNCHES, GIGABYTES, TERAFLOP, PEAK_GIB = 543, 10.95, 1.805, 1.81


def test_the_twin_asks_for_no_more_than_it_did() -> None:
    """In a process of its own: the made-up device stays known to PyTorch."""
    command = [sys.executable, "-m", "tests.inversion.fake_device", "--batch", "8", "--steps", "1"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=200)
    counts = json.loads(answer.stdout)
    reference, twin = counts["reference and metrics"], counts["twin and metrics"]
    assert reference["waits"] == twin["waits"] == 0, "rows are copied when the batch is done"
    assert twin["launches"] <= LAUNCHES < reference["launches"]
    assert twin["gigabytes"] <= GIGABYTES < reference["gigabytes"] / 6
    assert twin["teraflop"] <= TERAFLOP < reference["teraflop"]
    assert twin["peak_gib"] <= PEAK_GIB < reference["peak_gib"]


def test_a_batch_is_padded_to_the_next_graph() -> None:
    assert [padded_size(n, 32) for n in (1, 2, 3, 17, 31, 32)] == [1, 2, 4, 32, 32, 32]
    assert padded_size(23, 24) == 24


def test_a_failed_capture_costs_only_speed(caplog: pytest.LogCaptureFixture) -> None:
    """Without a GPU a capture fails as it may with one: the step is computed all the same."""
    if torch.cuda.is_available():
        pytest.skip("captures succeed here")

    def step(images: Tensor, codes: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        assert before is None
        return codes + images.mean(dim=(1, 2, 3))[:, None, None], images * 2

    graphed = GraphedStep(step, largest=2)
    images, codes = torch.rand(3, 3, 4, 4), torch.rand(3, 2, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            refined, rendered = graphed(images, codes, None)
            expected = step(images, codes, None)
            assert torch.equal(refined, expected[0])
            assert torch.equal(rendered, expected[1])
    assert caplog.text.count("CUDA graphs are off") == 1
