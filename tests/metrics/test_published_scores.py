"""Scores of whole inversions, compared with the published scripts, which read 8-bit files."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.inversion import invert
from pipeline.metrics.pixel import mean_squared_error
from pipeline.models import load_checkpoint


def as_written_to_a_file(images: Tensor) -> Tensor:
    """Clip and truncate to 8 bits, like `tensor2im` of the scripts."""
    levels = ((images.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return levels.float() / 127.5 - 1


@pytest.fixture(scope="module")
def step_images(reference, seeded, inputs) -> Tensor:
    """Reconstructions of the seeded church model, [2, 5, 3, 256, 256], its full size."""
    layout = json.loads((reference / "layouts" / "layout_psp_church.json").read_text())
    with np.load(reference / "golden" / "psp_church.npz") as golden:
        latent_avg = torch.from_numpy(golden["latent_avg"])
    state = seeded("psp_church", layout["salt"])
    checkpoint = {"state_dict": state, "latent_avg": latent_avg, "opts": layout["opts"]}
    return invert(load_checkpoint(checkpoint), inputs, steps=5).step_images


@pytest.mark.slow  # a model of 187 million seeded values
def test_scores_match_the_published_scripts(step_images, seeded_lpips, inputs, golden):
    expected = golden["losses"]["psp_church"]
    for step in range(5):
        written = as_written_to_a_file(step_images[:, step])
        l2, lpips = mean_squared_error(written, inputs), seeded_lpips(written, inputs)
        for index, name in enumerate(["sine", "astronaut"]):
            assert l2[index].item() == pytest.approx(expected["l2_png"][str(step)][name], rel=1e-4)
            published = expected["lpips_png"][str(step)][name]
            assert lpips[index].item() == pytest.approx(published, rel=1e-3)
