"""Coarse-to-fine analysis: the change of each step by style layer and image frequency.

ReStyle's first step decides pose and shape, and later ones add detail. In the codes the change
moves to later rows, in the images to higher frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inversion.render import render_each
from pipeline.models import RestyleModel
from pipeline.reports.requirements import require_steps
from pipeline.reports.sheets import Cell, ReportTable
from pipeline.reports.statistics import Floats, Interval, interval_of_sums
from pipeline.table import Table
from pipeline.table.model_lookup import model_of
from pipeline.table.schema import step_codes_of

_MIN_SIDE = 4  # pixels; the last band's shorter side


def laplacian_bands(images: Tensor) -> list[Tensor]:
    """Split images [n, c, h, w] into octaves, fine to coarse, [n, c, h / 2ᵏ, w / 2ᵏ].

    A band is the difference of an image and its half-size version (means of 2×2) enlarged again
    (bilinear). The last band is the remaining small image.
    """
    bands = []
    while min(images.shape[-2:]) >= 2 * _MIN_SIDE:
        half = F.avg_pool2d(images, 2)
        enlarged = F.interpolate(half, images.shape[-2:], mode="bilinear", align_corners=False)
        bands.append(images - enlarged)
        images = half
    return [*bands, images]


def band_names(side: int) -> list[str]:
    """Return the bands' ranges in cycles per image side; `side` is the shorter one in pixels."""
    names = []
    while side >= 2 * _MIN_SIDE:
        names.append(f"{side // 4}–{side // 2}")
        side //= 2
    return [*names, f"0–{side // 2}"]


# Rows of a W+ code by the resolution that they drive: 4 to 8, 16 to 32, 64 px and more.
GROUPS = {"coarse": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, None)}
_CODES = "SELECT image_id, w_plus_per_step, residual_norm_per_step FROM latents"
_ROWS = 64  # five steps of 18 x 512 float32 of 64 faces are 12 MB
# Rounding to float16 changes a residual's norm by far less, another initial code by far more.
_SAME_START = 0.02


@dataclass
class _Sums:
    """Sums of vectors by step."""

    n: list[int] = field(default_factory=list)
    total: list[Floats] = field(default_factory=list)
    squares: list[Floats] = field(default_factory=list)

    def add(self, step: int, values: Floats) -> None:
        while len(self.n) <= step:
            self.n.append(0)
            self.total.append(np.zeros_like(values))
            self.squares.append(np.zeros_like(values))
        self.n[step] += 1
        self.total[step] += values
        self.squares[step] += values**2

    def intervals(self) -> list[list[Interval]]:
        return [
            [interval_of_sums(n, *each) for each in zip(total, squares, strict=True)]
            for n, total, squares in zip(self.n, self.total, self.squares, strict=True)
        ]


@dataclass(frozen=True)
class Change:
    """Mean absolute change in each step, over the faces that have the step.

    A step without any known change has intervals over no values.
    """

    layers: Sequence[Sequence[Interval]]  # [steps][n_styles]
    groups: Sequence[Sequence[Interval]]  # [steps][coarse, medium, fine]
    bands: Sequence[Sequence[Interval]]  # [steps][bands], fine to coarse
    band_names: Sequence[str]  # cycles per image side
    faces: int
    rendered: int  # faces rendered for the bands
    without_start: int  # faces without the first step, as their initial code is not stored


class _Path(NamedTuple):
    """Codes of one face: the average latent, then each step's."""

    image_id: str
    codes: NDArray[np.float32]  # [1 + steps, n_styles, 512]
    from_average: bool  # the first step started from the average latent


@torch.no_grad()
def change_by_step(table: Table, *, images: int, device: str = "cpu") -> Change:
    """Measure layers over all faces of a table, frequency bands over at most `images` of them.

    The images are rendered from the stored codes with the table's model. Raises `RequestError`
    if the table does not have the code of every step, `ModelError` if the model is another one.
    """
    require_steps(table)
    model = model_of(table, device=device)
    layers, groups, bands = _Sums(), _Sums(), _Sums()
    chosen = _sample(table, images)
    faces = without_start = 0
    for path in _paths(table, model.latent_avg.cpu().numpy()):
        faces += 1
        without_start += not path.from_average
        change = np.abs(np.diff(path.codes.astype(np.float64), axis=0)).mean(axis=2)
        band_changes = _band_changes(model, path.codes) if path.image_id in chosen else []
        for step in range(0 if path.from_average else 1, len(change)):
            layers.add(step, change[step])
            groups.add(step, np.array([change[step, rows].mean() for rows in GROUPS.values()]))
            if band_changes:
                bands.add(step, band_changes[step])
    return Change(
        layers=layers.intervals(),
        groups=groups.intervals(),
        bands=bands.intervals(),
        band_names=band_names(min(model.frame_size)),
        faces=faces,
        rendered=len(chosen),
        without_start=without_start,
    )


def _sample(table: Table, count: int) -> set[str]:
    """Return the ids of at most `count` faces, the same for all tables of the same faces."""
    query = f"SELECT image_id FROM latents ORDER BY md5(image_id) LIMIT {int(count)}"
    return set(table.arrow(query)["image_id"].to_pylist())


def _paths(table: Table, average: NDArray[np.float32]) -> Iterator[_Path]:
    for batch in table.batches(_CODES, _ROWS):
        codes, offsets = step_codes_of(batch["w_plus_per_step"])
        norms = batch["residual_norm_per_step"].to_pylist()
        for row, image in enumerate(batch["image_id"].to_pylist()):
            own = codes[offsets[row] : offsets[row + 1]]
            if not len(own):
                continue
            norm = float(np.sqrt(np.square(own[0] - average).mean()))
            stored = (norms[row] or [None])[0]
            same = stored is not None and abs(norm - stored) <= _SAME_START * max(norm, stored)
            yield _Path(image, np.concatenate([average[None], own]), same)


def _band_changes(model: RestyleModel, codes: NDArray[np.float32]) -> list[Floats]:
    """Return the mean absolute change of each band in each step, [steps][bands]."""
    tensor = torch.from_numpy(codes).to(model.latent_avg.device)
    frames = torch.stack(list(render_each(model, tensor))).clamp(-1, 1)
    # Bands are linear in the image: the bands of a difference are the differences of bands.
    bands = laplacian_bands(frames.diff(dim=0))
    changes = torch.stack([band.abs().mean(dim=(1, 2, 3)) for band in bands], dim=1)
    return list(changes.cpu().double().numpy())


_NOTE = (
    "Mean absolute change of the code in each step, over all faces of a table that have it: rows "
    "1–4 (coarse), 5–8 (medium), 9 and up (fine). `coarse_to_fine_layers.csv` has each row; "
    "`coarse_to_fine_bands.csv` has octaves of a Laplacian pyramid of the images in [-1, 1] that "
    "the model renders from the stored codes; faces rendered: {}."
)


def groups_table(changes: Mapping[str, Change]) -> ReportTable:
    """Return the change by group of rows: one row per table and step, one column per group."""
    rows: list[list[Cell]] = [
        [name, step, *groups]
        for name, change in changes.items()
        for step, groups in enumerate(change.groups, 1)
    ]
    note = _NOTE.format(_counts({name: change.rendered for name, change in changes.items()}))
    left_out = {name: each.without_start for name, each in changes.items() if each.without_start}
    if left_out:
        note += (
            " First steps that did not start from the average code are not included, faces: "
            f"{_counts(left_out)}."
        )
    return ReportTable("coarse_to_fine", "Coarse to fine", ["method", "step", *GROUPS], rows, note)


def layers_table(changes: Mapping[str, Change]) -> ReportTable:
    """Return the change by style layer: one row per table, step and layer."""
    rows: list[list[Cell]] = [
        [name, step, layer, mean]
        for name, change in changes.items()
        for step, layers in enumerate(change.layers, 1)
        for layer, mean in enumerate(layers, 1)
    ]
    header = ["method", "step", "layer", "mean absolute change"]
    return ReportTable("coarse_to_fine_layers", "Style layers", header, rows)


def bands_table(changes: Mapping[str, Change]) -> ReportTable:
    """Return the change by frequency band: one row per table, step and band."""
    rows: list[list[Cell]] = [
        [name, step, band, mean]
        for name, change in changes.items()
        for step, bands in enumerate(change.bands, 1)
        for band, mean in zip(change.band_names, bands, strict=True)
    ]
    header = ["method", "step", "cycles an image side", "mean absolute change"]
    return ReportTable("coarse_to_fine_bands", "Image frequencies", header, rows)


def _counts(faces: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in faces.items())
