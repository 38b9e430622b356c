"""Small JPEG pictures of chosen faces of a table: the target and the reconstruction."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipeline.inversion.render import pooled, render_each
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_pixels
from pipeline.reports.targets import Pixels, Targets, decoded
from pipeline.table import Table
from pipeline.table.selection import rows_of

_ROWS = 32  # whose targets and codes are in memory
_QUALITY = 85


class FacePicture(NamedTuple):
    """JPEG of the target, None if it cannot be had again, and of the reconstruction."""

    target: bytes | None
    reconstruction: bytes


@torch.no_grad()
def face_pictures(
    table: Table, model: RestyleModel, targets: Targets, ids: Iterable[str], width: int
) -> dict[str, FacePicture]:
    """Return the pictures of faces by image id, at most `width` pixels wide.

    The reconstruction is the kept one, else it is rendered from `w_plus`. `targets` counts the
    targets that cannot be had.
    """
    chosen = pa.table({"image_id": sorted(set(ids))})
    kept = table.spec.columns.reconstruction_jpeg
    code = "reconstruction_jpeg" if kept else "w_plus"
    query = f"SELECT {targets.columns}, {code} FROM latents SEMI JOIN chosen USING (image_id)"
    pictures: dict[str, FacePicture] = {}
    for batch in table.batches(query, _ROWS, chosen=chosen):
        rows = list(rows_of(batch))
        crops = targets.crops(rows)
        for row in rows:
            crop = crops.get(row["image_id"])
            pictures[row["image_id"]] = FacePicture(
                None if crop is None else _jpeg(crop, width),
                _jpeg(_reconstruction(model, row), width),
            )
    return pictures


def _reconstruction(model: RestyleModel, row: dict[str, Any]) -> Pixels:
    if row.get("reconstruction_jpeg"):
        return decoded(row["reconstruction_jpeg"])
    codes = torch.from_numpy(np.array(row["w_plus"], np.float32)[None])
    codes = codes.to(model.latent_avg.device)
    (frame,) = render_each(model, codes)
    return to_pixels(pooled(frame, model.input_size))


def _jpeg(pixels: Pixels, width: int) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
