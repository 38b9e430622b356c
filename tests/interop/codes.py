"""Codes for tests, and a pickle that must not be executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def codes(steps: int = 2, n_styles: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, n_styles, 512)).astype(np.float32)


class Attack:
    """Create a file when its pickle is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))
