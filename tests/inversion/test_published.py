"""Official checkpoint layouts with seeded weights, compared with results of the official code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.choices import Device
from pipeline.inversion import (
    Inversion,
    average_image,
    invert,
    ready_device,
)
from pipeline.inversion.methods import Method, Models, find_codes
from pipeline.models import RestyleModel, load_checkpoint

TOLERANCE = 1e-4  # relative to the largest value; the promise is 1e-3, measured are 2e-6
QUICK = ("psp_church", "e4e_horse")
LARGE = ("psp_ffhq", "psp_cars", "psp_afhq_wild_avg1d", "gradual_ffhq_nc3")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NO_GOLDEN = (
    "e4e_ffhq",
    "psp_afhq_wild",
    "gradual_ffhq_nc6",
    "resnet_gradual_church",
    "psp_original_nc3",
    "e4e_original_nc3",
    "toonify_model2",
)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    """Folder of reference numbers."""
    return shared / "reference"


def layout(reference: Path, variant: str) -> dict[str, Any]:
    """Return the layout of a variant's checkpoint."""
    record: dict[str, Any] = json.loads(
        (reference / "layouts" / f"layout_{variant}.json").read_text()
    )
    return record


def seeded_checkpoint(reference: Path, variant: str) -> dict[str, Any]:
    """Return a variant's official dictionary with the weights of the golden numbers."""
    spec = importlib.util.spec_from_file_location("seeded", reference / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    record = layout(reference, variant)
    weights = seeded.fill_state_dict(record["state_dict"], record["salt"])
    average = seeded.seeded_tensor("latent_avg", record["latent_avg"][0], record["salt"])
    return {
        "state_dict": {key: torch.from_numpy(np.asarray(value)) for key, value in weights.items()},
        "latent_avg": torch.from_numpy(average),
        "opts": {"encoder_type": record["encoder_type"], **record.get("opts", {})},
    }


def hollow_checkpoint(reference: Path, variant: str) -> dict[str, Any]:
    """Return a variant's dictionary with all weights 0: untouched memory costs nothing."""
    record = layout(reference, variant)
    binomial = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16
    state = {
        key: binomial if key.endswith(".kernel") else torch.zeros(shape)
        for key, (shape, _) in record["state_dict"].items()
    }
    opts = {"encoder_type": record["encoder_type"], **record.get("opts", {})}
    return {"state_dict": state, "latent_avg": torch.zeros(record["latent_avg"][0]), "opts": opts}


def targets(reference: Path, model: RestyleModel) -> Tensor:
    """Return the reference inputs of `model`, [2, 3, *input_size] in [-1, 1]."""
    height, width = model.input_size
    pictures = [Image.fromarray(picture) for picture in np.load(reference / "inputs" / "x_u8.npy")]
    resized = [p.resize((width, height), Image.Resampling.BILINEAR) for p in pictures]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in resized])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - 0.5) / 0.5


def golden(reference: Path, variant: str) -> dict[str, NDArray[np.float32]]:
    """Return the results of the official code."""
    with np.load(reference / "golden" / f"{variant}.npz", allow_pickle=False) as file:
        return dict(file)


def error(result: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def assert_agrees(
    parts: list[Inversion], expected: dict[str, NDArray[np.float32]], steps: int
) -> None:
    """Compare codes and block means of the first `steps` steps; after all steps also pixels."""
    codes = torch.cat([part.w_plus for part in parts], dim=1).cpu().numpy()
    assert error(codes, expected["latents"][:, :steps]) < TOLERANCE
    size = expected["steps_small"].shape[3:]
    images = torch.cat([part.step_images for part in parts], dim=1)
    small = F.adaptive_avg_pool2d(images.flatten(0, 1), size).unflatten(0, images.shape[:2])
    assert error(small.cpu().numpy(), expected["steps_small"][:, :steps]) < TOLERANCE
    if steps == expected["latents"].shape[1]:
        y, x = expected["pixel_yx"].T
        pixels = parts[-1].images.cpu().numpy()[:, :, y, x]
        assert error(pixels, expected["pixels"][:, -1]) < TOLERANCE


@pytest.mark.parametrize("variant", QUICK)
def test_two_steps_give_the_official_numbers(reference: Path, variant: str) -> None:
    model = load_checkpoint(seeded_checkpoint(reference, variant))
    expected = golden(reference, variant)
    first = {key: expected[key][:1] for key in ("latents", "steps_small")}
    result = invert(model, targets(reference, model)[:1], steps=2)
    assert_agrees([result], first, steps=2)
    small = F.adaptive_avg_pool2d(average_image(model), expected["avg_small"].shape[1:])
    assert error(small.numpy(), expected["avg_small"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", QUICK + LARGE)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_all_steps_give_the_official_numbers(reference: Path, variant: str, device: Device) -> None:
    model = load_checkpoint(seeded_checkpoint(reference, variant)).to(ready_device(device))
    expected = golden(reference, variant)
    steps = expected["latents"].shape[1]
    result = invert(model, targets(reference, model), steps=steps)
    assert_agrees([result], expected, steps)


@pytest.mark.slow
def test_bootstrapping_gives_the_official_numbers(reference: Path) -> None:
    portraits = load_checkpoint(seeded_checkpoint(reference, "psp_ffhq"))
    cartoons = load_checkpoint(seeded_checkpoint(reference, "toonify_model2"))
    images = targets(reference, portraits)
    first = invert(portraits, images, steps=1)
    method, models = Method(steps=5, bootstrap_steps=1), Models(cartoons, first=portraits)
    second = find_codes(method, models, images, ["0", "1"], batch_size=2)
    assert_agrees([first, second], golden(reference, "toonify_bootstrap"), steps=6)


@pytest.mark.parametrize("variant", QUICK + LARGE + NO_GOLDEN)
def test_every_published_layout_loads_strictly(reference: Path, variant: str) -> None:
    model = load_checkpoint(hollow_checkpoint(reference, variant))
    keys = layout(reference, variant)["state_dict"]
    loaded = {key.replace("generator.", "decoder.", 1) for key in model.state_dict()}
    assert loaded == set(keys) | {"latent_avg"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", NO_GOLDEN)
def test_layouts_without_golden_numbers_run(reference: Path, variant: str) -> None:
    model = load_checkpoint(seeded_checkpoint(reference, variant))
    result = invert(model, targets(reference, model)[:1], steps=1)
    assert result.images.shape[1:] == (3, *model.frame_size)
    assert result.finite.all()
    assert (result.w_plus[:, 0] - model.latent_avg).abs().max() > 1e-3
