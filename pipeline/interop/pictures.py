"""Render a table's codes as pictures in the published scripts' layout.

| kind      | files                                  | as in                                |
|-----------|----------------------------------------|--------------------------------------|
| `images`  | `<name>.png`, the best step            |                                      |
| `results` | `<step>/<name>.png`, steps from 0      | `inference_iterative.py`             |
| `coupled` | `<name>.png`: all steps, then the input | `inference_iterative_save_coupled.py` |

The files are PNG at the generator's size, rounded to 8 bits. `Drawing` can give the scripts' pixels
instead: width 256 is their `--resize_outputs`, and `truncate` is what their `tensor2im` does.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.interop.exporting import NamedSelection, put_files
from pipeline.interop.file_names import to_file_name
from pipeline.inversion.render import pooled, render_each
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_pixels

Kind = Literal["images", "results", "coupled"]
Pixels = NDArray[np.uint8]

_MAX_STEPS = 9999  # for the length of the step's folder name in a path

_CODES = 16  # that are rendered together

_COLUMNS = {
    "images": "w_plus AS codes",
    "results": "w_plus_per_step AS codes",
    "coupled": "w_plus_per_step AS codes, aligned_jpeg AS target",
}


@dataclass(frozen=True)
class Drawing:
    """Size and rounding of the pictures, and truncation of the codes."""

    width: int | None = None  # in pixels, the height in proportion; None: the frame's width
    truncate: bool = False  # truncate levels, as the published scripts do, instead of rounding
    psi: float = 1.0  # each code is moved to average + psi * (code - average)

    def pixels(self, frame: Tensor) -> Pixels:
        """Convert a frame [3, H, W] in [-1, 1] to uint8 [h, w, 3].

        For an integer factor it averages blocks before rounding, as the scripts do; otherwise it
        resizes with Pillow's Lanczos filter after rounding.
        """
        rows, columns = frame.shape[-2:]
        width = self.width or columns
        height = max(1, round(rows * width / columns))
        if columns % width == 0 and rows % height == 0:
            small = pooled(frame, (height, width)) if width != columns else frame
            return to_pixels(small, truncate=self.truncate)
        picture = Image.fromarray(to_pixels(frame, truncate=self.truncate))
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


FULL_SIZE = Drawing()


def export_pictures(
    selection: NamedSelection,
    model: RestyleModel,
    uri: str,
    kind: Kind,
    drawing: Drawing = FULL_SIZE,
) -> int:
    """Write pictures of the faces below `uri`; return the number of files.

    Raises `ConfigError` when the table lacks the columns that `kind` needs.
    """
    columns = selection.table.spec.columns
    if kind != "images" and not columns.all_steps:
        raise ConfigError(f"{kind} need every step: make the table with --keep-steps")
    if kind == "coupled" and not columns.aligned_jpeg:
        raise ConfigError("coupled pictures need the input: make the table with --keep-crops")
    files = (
        (f"{name}.png", png(pixels))
        for row in selection.named_rows(_COLUMNS[kind])
        for name, pixels in _pictures(row, model, kind, drawing)
    )
    return put_files(selection, uri, files, ".png", f"{_MAX_STEPS}/" if kind == "results" else "")


def png(pixels: Pixels) -> bytes:
    """Encode a picture, uint8 [h, w, 3], as PNG."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@torch.no_grad()
def frames_of(
    model: RestyleModel, codes: NDArray[np.float32], drawing: Drawing = FULL_SIZE
) -> Pixels:
    """Render codes [n, n_styles, 512] to uint8 [n, h, w, 3], by default of `frame_size`."""
    tensor = torch.from_numpy(np.array(codes)).to(model.latent_avg.device)
    if drawing.psi != 1:
        tensor = model.latent_avg + drawing.psi * (tensor - model.latent_avg)
    return np.stack([drawing.pixels(frame) for frame in render_each(model, tensor)])


def rendered(
    model: RestyleModel, codes: Iterable[NDArray[np.float32]], drawing: Drawing = FULL_SIZE
) -> Iterator[Pixels]:
    """Yield the picture [h, w, 3] of each code [n_styles, 512]; memory holds a few of them."""
    waiting = iter(codes)
    while batch := list(itertools.islice(waiting, _CODES)):
        yield from frames_of(model, np.stack(batch), drawing)


def render_png(
    model: RestyleModel, codes: NDArray[np.float32], drawing: Drawing = FULL_SIZE
) -> list[bytes]:
    """Render codes [n, n_styles, 512], one at a time, to encoded PNG."""
    return [png(frames_of(model, code[None], drawing)[0]) for code in codes]


def _pictures(
    row: dict[str, Any], model: RestyleModel, kind: Kind, drawing: Drawing
) -> Iterator[tuple[str, Pixels]]:
    name, codes = to_file_name(row["name"]), row["codes"]
    frames = frames_of(model, codes[None] if kind == "images" else codes, drawing)
    if kind == "results":
        yield from ((f"{step}/{name}", frame) for step, frame in enumerate(frames))
    elif kind == "images":
        yield name, frames[0]
    else:
        height, width = frames.shape[1:3]
        target = Image.open(io.BytesIO(row["target"])).convert("RGB").resize((width, height))
        yield name, np.concatenate([*frames, np.asarray(target)], axis=1)
