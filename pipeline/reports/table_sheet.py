"""Draw a contact sheet of a table's faces, rendered from their codes."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.errors import RequestError
from pipeline.inversion import average_image, invert
from pipeline.inversion.render import pooled, render_each
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_pixels, to_unit
from pipeline.reports.contact_sheet import Pixels, SheetRow, contact_sheet
from pipeline.reports.requirements import require_crops_and_steps
from pipeline.table import Table
from pipeline.table.model_lookup import first_model_of, model_of
from pipeline.table.statements import condition

QUERY = """
SELECT image_id, aligned_jpeg, w_plus_per_step, l2_per_step, lpips_per_step, best_step
FROM latents {where} ORDER BY image_id LIMIT {limit}
"""


def _crop(face: Any) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(face.aligned_jpeg)).convert("RGB"))


def _steps(model: RestyleModel, face: Any) -> list[Pixels]:
    codes = np.array([[list(row) for row in step] for step in face.w_plus_per_step], np.float32)
    frames = render_each(model, torch.from_numpy(codes))
    return [to_pixels(pooled(frame, model.input_size)) for frame in frames]


def _row(model: RestyleModel, average: Pixels, face: Any) -> SheetRow:
    return SheetRow(
        target=_crop(face),
        average=average,
        steps=_steps(model, face),
        label=face.image_id,
        l2=face.l2_per_step,
        lpips=face.lpips_per_step,
        best_step=face.best_step,
    )


def _bootstrapped_row(
    model: RestyleModel, first: RestyleModel, steps: int, average: Pixels, face: Any
) -> SheetRow:
    """Return the row of a face that started from another model's inversion, repeated here.

    It has no metrics: distances to a photograph do not measure the quality of a cartoon.
    """
    initial = invert(first, to_unit(_crop(face))[None], steps=steps).step_images[0]
    return SheetRow(
        target=_crop(face),
        average=average,
        bootstrap=[to_pixels(image) for image in initial],
        steps=_steps(model, face),
        label=face.image_id,
    )


@torch.no_grad()
def table_sheet(table: Table, *, where: str = "", limit: int = 12, title: str = "") -> bytes:
    """Draw a PNG of the first `limit` faces, by image id, that the SQL condition `where` selects.

    For a bootstrapped table it includes the first model's steps. Raises `RequestError` if the table
    has no crops or steps, or no face is selected, and `ModelError` if its model is another one.
    """
    require_crops_and_steps(table)
    chosen = f"WHERE {condition(where)}" if where else ""
    faces = table.sql(QUERY.format(where=chosen, limit=int(limit)))
    if faces.empty and where:
        raise RequestError(f"--where \"{where}\" selects no face of the table '{table.store.root}'")
    if faces.empty:
        raise RequestError(f"the table '{table.store.root}' has no faces to show")
    model, first = model_of(table), first_model_of(table)
    if first:
        steps = int(table.spec.config.get("bootstrap_steps") or 1)
        average = to_pixels(average_image(first))
        draw = partial(_bootstrapped_row, model, first, steps, average)
    else:
        draw = partial(_row, model, to_pixels(average_image(model)))
    rows = [draw(face) for face in faces.itertuples(index=False)]
    step_name = "cartoon" if model.domain == "toonify" else "step"
    return contact_sheet(rows, title=title, step_name=step_name)
