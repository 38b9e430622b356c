"""The published scripts' numbers, where they lie beside the repository, and seeded weights."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    if not REFERENCE.is_dir():
        pytest.skip(f"the reference numbers are not at {REFERENCE}")
    return REFERENCE


@pytest.fixture(scope="session")
def golden(reference: Path) -> Any:
    return json.loads((reference / "golden" / "metrics.json").read_text())


@pytest.fixture(scope="session")
def identity_golden(reference: Path) -> dict[str, np.ndarray]:
    with np.load(reference / "golden" / "identity.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def inputs(reference: Path) -> Tensor:
    """The two reference inputs, [2, 3, 256, 256] in [-1, 1]."""
    pixels = torch.from_numpy(np.load(reference / "inputs" / "x_u8.npy"))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def seeded(reference: Path) -> Callable[[str, str], dict[str, Tensor]]:
    """State dict of the layout and salt given, every value a function of its key."""
    spec = importlib.util.spec_from_file_location("seeded", reference / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def fill(layout: str, salt: str) -> dict[str, Tensor]:
        shapes = json.loads((reference / "layouts" / f"layout_{layout}.json").read_text())
        arrays = module.fill_state_dict(shapes["state_dict"], salt)
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    return fill
