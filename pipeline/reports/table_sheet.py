"""Draw a contact sheet of a table's faces, rendered from their codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.inversion import average_image, invert
from pipeline.inversion.render import pooled, render_each
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_pixels, to_unit
from pipeline.reports.contact_sheet import Pixels, SheetRow, contact_sheet
from pipeline.reports.targets import Targets
from pipeline.table.model_lookup import first_model_of, model_of
from pipeline.table.selection import Selection

MAX_FACES = 2000  # a sheet of them is 350,000 pixels high
_ROWS = 32  # whose targets are read together

_STEPS = "w_plus_per_step AS codes, l2_per_step AS l2, lpips_per_step AS lpips, best_step"
_BEST = "w_plus AS codes, l2, lpips"


class TableSheet(NamedTuple):
    """Picture of a sheet, PNG, its number of faces, and the targets that it could not show."""

    picture: bytes
    faces: int
    targets: Targets


@torch.no_grad()
def table_sheet(selection: Selection, *, title: str = "") -> TableSheet:
    """Draw the selected faces in their order.

    A target that the table does not have is cropped from its source again (`Targets`); where that
    is impossible its cell is empty. A table without kept steps shows the best one. For a
    bootstrapped table the sheet includes the first model's steps. Raises `RequestError` if no face
    is selected, and `ModelError` if the table's model is another one. Raises `ConfigError` for more
    than `MAX_FACES`.
    """
    faces = selection.require_rows()
    if faces > MAX_FACES:
        raise ConfigError(
            f"a sheet has at most {MAX_FACES:,} faces, not {faces:,}: choose with --limit"
        )
    table = selection.table
    model, targets = model_of(table), Targets(table)
    first = first_model_of(table)
    first_steps = int(table.spec.config.get("bootstrap_steps") or 1)
    average = to_pixels(average_image(first or model))
    rows = []
    for face, target in _faces(selection, targets):
        row = SheetRow(target, average, _steps(model, face), label=face["image_id"])
        if first:
            # No metrics: distances to a photograph do not measure the quality of a cartoon.
            rows.append(replace(row, bootstrap=_first_inversion(first, first_steps, target)))
        else:
            l2, lpips = _listed(face["l2"]), _listed(face["lpips"])
            rows.append(replace(row, l2=l2, lpips=lpips, best_step=face.get("best_step")))
    picture = contact_sheet(
        rows,
        title=title,
        step_name="cartoon" if model.domain == "toonify" else "step",
        best_only=not table.spec.columns.all_steps,
    )
    return TableSheet(picture, len(rows), targets)


def _faces(
    selection: Selection, targets: Targets
) -> Iterator[tuple[dict[str, Any], Pixels | None]]:
    """Yield the columns of each face, and its target; None without one."""
    shown = _STEPS if selection.table.spec.columns.all_steps else _BEST
    faces = selection.rows(f"{targets.columns}, {shown}")
    while group := list(islice(faces, _ROWS)):
        crops = targets.crops(group)
        yield from ((face, crops.get(face["image_id"])) for face in group)


def _steps(model: RestyleModel, face: dict[str, Any]) -> list[Pixels]:
    """Render the kept steps of a face, or the best one alone."""
    codes = np.array(face["codes"], np.float32)
    frames = render_each(model, torch.from_numpy(codes.reshape(-1, *codes.shape[-2:])))
    return [to_pixels(pooled(frame, model.input_size)) for frame in frames]


def _first_inversion(
    model: RestyleModel, steps: int, target: Pixels | None
) -> Sequence[Pixels | None]:
    """Repeat the inversion that a bootstrapped face started from; unknown without a target."""
    if target is None:
        return [None] * steps
    return list(map(to_pixels, invert(model, to_unit(target)[None], steps=steps).step_images[0]))


def _listed(values: Any) -> Sequence[float | None]:
    """Return the values of steps, or of the best step alone, as a list."""
    return values if isinstance(values, list) else [values]
