"""Results of the published scripts (skipped without the reference folder), and seeded weights."""

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.metrics.lpips import Lpips

COPIES = ["same", "blur", "flip", "shift", "dark"]  # of one face, whose warps are published


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    return shared / "reference"


@pytest.fixture(scope="session")
def golden(reference: Path) -> Any:
    return json.loads((reference / "golden" / "metrics.json").read_text())


@pytest.fixture(scope="session")
def identity_golden(reference: Path) -> dict[str, np.ndarray]:
    with np.load(reference / "golden" / "identity.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def inputs(reference: Path) -> Tensor:
    """Two reference inputs, [2, 3, 256, 256] in [-1, 1]."""
    pixels = torch.from_numpy(np.load(reference / "inputs" / "x_u8.npy"))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def seeded(reference: Path) -> Callable[..., dict[str, Tensor]]:
    """Function that fills a layout's state dict; every value depends on its key and a salt.

    With `prefix` only keys that begin with it are filled.
    """
    spec = importlib.util.spec_from_file_location("seeded", reference / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def fill(layout: str, salt: str, prefix: str = "") -> dict[str, Tensor]:
        content = json.loads((reference / "layouts" / f"layout_{layout}.json").read_text())
        shapes = {k: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        arrays = module.fill_state_dict(shapes, salt)
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    return fill


@pytest.fixture(scope="session")
def seeded_lpips(seeded: Callable[..., dict[str, Tensor]]) -> Lpips:
    """LPIPS with the weights of the reference scores."""
    network = Lpips()
    body = seeded("lpips_alexnet_torchvision", "alexnet/", prefix="features.")
    network.load_state_dict(body | seeded("lpips_lin_alex", "lpips_alex/"))
    return network.requires_grad_(False)


def crop(tar: tarfile.TarFile, number: int, side: int) -> Tensor:
    """Return a rendered face [3, side, side] in [-1, 1], cropped at the place in its sidecar."""
    photo, sidecar = (tar.extractfile(f"portraits/{number:04d}.{e}") for e in ("jpg", "json"))
    assert photo is not None
    assert sidecar is not None
    frame = json.loads(sidecar.read())
    left, top = frame["x"] - frame["span"] / 2, frame["y"] - frame["span"] / 2
    box = tuple(map(round, (left, top, left + frame["span"], top + frame["span"])))
    image = Image.open(io.BytesIO(photo.read())).crop(box).resize((side, side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="session")
def people() -> Tensor:
    """Three different faces, [3, 3, 256, 256]."""
    content = resources.files("pipeline").joinpath("samples", "samples-0000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return torch.stack([crop(tar, number, 256) for number in (2, 3, 4)])


def warps(identity_golden: dict[str, np.ndarray], *names: str) -> Tensor:
    """Return the published warps `names`, [n, 3, 112, 112] in [-1, 1]."""
    pixels = np.stack([identity_golden[f"{name}_warp112"] for name in names])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
