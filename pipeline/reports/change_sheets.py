"""Coarse to fine as tables: what each step changed, by group, style layer and frequency band."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.reports.coarse_to_fine import GROUPS, Change
from pipeline.reports.sheets import Cell, Sheet

_NOTE = (
    "Mean absolute change of the code in each step, over all faces of a table that made it: rows "
    "1–4 (coarse), 5–8 (medium), 9 and up (fine). `coarse_to_fine_layers.csv` has each row; "
    "`coarse_to_fine_bands.csv` has octaves of a Laplacian pyramid of the images, [-1, 1], that "
    "the model renders from the stored codes; faces rendered: {}."
)


def groups_sheet(changes: Mapping[str, Change]) -> Sheet:
    """A row a table and step, a column a group of rows of the code."""
    rows: list[list[Cell]] = [
        [name, step, *groups]
        for name, change in changes.items()
        for step, groups in enumerate(change.groups, 1)
    ]
    note = _NOTE.format(_counts({name: change.rendered for name, change in changes.items()}))
    left_out = {name: each.without_start for name, each in changes.items() if each.without_start}
    if left_out:
        note += (
            " First steps that did not start from the average code are left out, faces: "
            f"{_counts(left_out)}."
        )
    return Sheet("coarse_to_fine", "Coarse to fine", ["method", "step", *GROUPS], rows, note)


def layers_sheet(changes: Mapping[str, Change]) -> Sheet:
    """A row a table, step and style layer."""
    rows: list[list[Cell]] = [
        [name, step, layer, mean]
        for name, change in changes.items()
        for step, layers in enumerate(change.layers, 1)
        for layer, mean in enumerate(layers, 1)
    ]
    header = ["method", "step", "layer", "mean absolute change"]
    return Sheet("coarse_to_fine_layers", "Style layers", header, rows)


def bands_sheet(changes: Mapping[str, Change]) -> Sheet:
    """A row a table, step and frequency band."""
    rows: list[list[Cell]] = [
        [name, step, band, mean]
        for name, change in changes.items()
        for step, bands in enumerate(change.bands, 1)
        for band, mean in zip(change.band_names, bands, strict=True)
    ]
    header = ["method", "step", "cycles an image side", "mean absolute change"]
    return Sheet("coarse_to_fine_bands", "Image frequencies", header, rows)


def _counts(faces: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in faces.items())
