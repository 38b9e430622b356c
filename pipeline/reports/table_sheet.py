"""A contact sheet of faces that are in a table, rendered again from their codes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.inversion import average_image
from pipeline.inversion.rendering import pooled, render_each
from pipeline.models import RestyleModel, load_model
from pipeline.reports.contact_sheet import Pixels, SheetRow, contact_sheet
from pipeline.table import Table

QUERY = """
SELECT image_id, aligned_jpeg, w_plus_per_step, l2_per_step, lpips_per_step, best_step
FROM latents {where} ORDER BY image_id LIMIT {limit}
"""


def _to_pixels(image: Tensor) -> Pixels:
    """[3, h, w] in [-1, 1] to uint8 [h, w, 3], rounded."""
    scaled = image.clamp(-1, 1).add(1).mul(127.5).round().byte()
    pixels: Pixels = scaled.permute(1, 2, 0).cpu().numpy()
    return pixels


def _row(model: RestyleModel, average: Pixels, face: Any) -> SheetRow:
    codes = np.array([[list(row) for row in step] for step in face.w_plus_per_step], np.float32)
    frames = render_each(model, torch.from_numpy(codes))
    return SheetRow(
        target=np.asarray(Image.open(io.BytesIO(face.aligned_jpeg)).convert("RGB")),
        average=average,
        steps=[_to_pixels(pooled(frame, model.input_size)) for frame in frames],
        label=face.image_id,
        l2=face.l2_per_step,
        lpips=face.lpips_per_step,
        best_step=face.best_step,
    )


@torch.no_grad()
def table_sheet(table: Table, *, where: str = "", limit: int = 12, title: str = "") -> bytes:
    """PNG of the first `limit` faces that the SQL condition `where` chooses, by image id.

    Raises `RequestError` if the table keeps no crops and steps, or no face is chosen.
    """
    columns = table.description.columns
    if not (columns.all_steps and columns.aligned_jpeg):
        raise RequestError(
            f"the table '{table.store.root}' holds no crops and steps to show: "
            "make it with --keep-crops and --keep-steps"
        )
    faces = table.sql(QUERY.format(where=f"WHERE {where}" if where else "", limit=int(limit)))
    if faces.empty:
        raise RequestError(f"the table '{table.store.root}' has no face to show")
    model = load_model(table.description.config["model"])
    average = _to_pixels(average_image(model))
    rows = [_row(model, average, face) for face in faces.itertuples(index=False)]
    return contact_sheet(rows, title=title)
