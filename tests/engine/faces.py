"""Faces of the tiny model, and codes that they begin with."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.engine.stages.align import FACES


def face(number: int) -> dict[str, Any]:
    """A row of `FACES` with a smooth picture of its own."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = np.stack([np.sin((number + 2) * x + c * y) for c in range(3)], axis=-1)
    pixels = ((waves + 1) * 127.5).astype(np.uint8)
    known = {
        "key": str(number),
        "source_uri": f"/in/{number}",
        "source_sha256": "",
        "face_index": 0,
    }
    return dict.fromkeys(FACES.names) | known | {"n_faces": 1, "pixels": pixels.tobytes()}


def start_of(*numbers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {f"s/{n}#0": rng.standard_normal((10, 512)).astype(np.float32) for n in numbers}
