"""Pictures of a table's codes, rendered through their model, in the published scripts' layout.

| kind      | files                                  | as in                                |
|-----------|----------------------------------------|--------------------------------------|
| `images`  | `<name>.png`, the best step            |                                      |
| `results` | `<step>/<name>.png`, steps from 0      | `inference_iterative.py`             |
| `coupled` | `<name>.png`: all steps, then the input | `inference_iterative_save_coupled.py` |

They are PNG files of frames at the generator's size, rounded to 8 bits; the scripts truncate.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.exchange.exporting import Selection, put_files
from pipeline.exchange.file_names import to_file_name
from pipeline.inversion.render import render_each
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_pixels

Kind = Literal["images", "results", "coupled"]
Pixels = NDArray[np.uint8]

_MOST_STEPS = 9999  # of which the folder's name has room in a path

_COLUMNS = {
    "images": "w_plus AS codes",
    "results": "w_plus_per_step AS codes",
    "coupled": "w_plus_per_step AS codes, aligned_jpeg AS target",
}


def export_pictures(selection: Selection, model: RestyleModel, uri: str, kind: Kind) -> int:
    """Write pictures of the faces below `uri`; the number of files.

    Raises `ConfigError` where the table does not keep what `kind` shows.
    """
    columns = selection.table.description.columns
    if kind != "images" and not columns.all_steps:
        raise ConfigError(f"{kind} show every step: make the table with --keep-steps")
    if kind == "coupled" and not columns.aligned_jpeg:
        raise ConfigError("coupled pictures show the input: make the table with --keep-crops")
    files = (
        (f"{name}.png", png(pixels))
        for row in selection.rows(_COLUMNS[kind])
        for name, pixels in _pictures(row, model, kind)
    )
    selection.check_files(uri, ".png", f"{_MOST_STEPS}/" if kind == "results" else "")
    return put_files(uri, files, selection)


def png(pixels: Pixels) -> bytes:
    """One picture uint8 [h, w, 3] as PNG bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@torch.no_grad()
def frames_of(model: RestyleModel, codes: NDArray[np.float32]) -> Pixels:
    """Frames of codes [n, n_styles, 512], uint8 [n, *frame_size, 3]."""
    tensor = torch.from_numpy(np.array(codes)).to(model.latent_avg.device)
    return to_pixels(torch.stack(list(render_each(model, tensor))))


def _pictures(row: dict[str, Any], model: RestyleModel, kind: Kind) -> Iterator[tuple[str, Pixels]]:
    name, codes = to_file_name(row["name"]), row["codes"]
    frames = frames_of(model, codes[None] if kind == "images" else codes)
    if kind == "results":
        yield from ((f"{step}/{name}", frame) for step, frame in enumerate(frames))
    elif kind == "images":
        yield name, frames[0]
    else:
        height, width = frames.shape[1:3]
        target = Image.open(io.BytesIO(row["target"])).convert("RGB").resize((width, height))
        yield name, np.concatenate([*frames, np.asarray(target)], axis=1)
