"""Which tables may be compared: the same faces, cut and measured in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RequestError
from pipeline.reports.faces import Faces, compared_metrics
from pipeline.table import Table

_NOT_MEASURED = "not measured"
# These choose which faces there are, which is checked face by face.
_CHOICE = {"faces", "min_face_px", "max_pixels", "min_side", "detector_side", "min_score"}
_CHOICE |= {"turns", "search_pixels", "check_below"}
_LISTED = 5


def check_measured_alike(tables: Sequence[Table], labels: Sequence[str]) -> None:
    """Raise `RequestError` naming every metric that is defined in two ways.

    A metric that a table does not measure is missing there, not another one. The size of the
    crops is part of what pixel distances mean.
    """
    differences = [
        difference
        for table, label in zip(tables[1:], labels[1:], strict=True)
        for difference in _differences(tables[0], labels[0], table, label)
    ]
    if differences:
        raise RequestError(f"the tables are not measured alike: {'; '.join(differences)}")


def _differences(one: Table, its: str, other: Table, their: str) -> Iterator[str]:
    first, second = one.spec.metrics, other.spec.metrics
    for name in [*compared_metrics(one), "best_step"]:
        definitions = {
            m[name] for m in (first, second) if m.get(name, _NOT_MEASURED) != _NOT_MEASURED
        }
        if len(definitions) > 1:
            yield f"'{name}' is another metric in '{their}' than in '{its}' (see _table.json)"
    first, second = _crop_settings(one), _crop_settings(other)
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            yield (
                f"alignment.{name} is {json.dumps(first[name])} in '{its}' and "
                f"{json.dumps(second[name])} in '{their}'"
            )


def _crop_settings(table: Table) -> dict[str, Any]:
    settings = table.spec.settings
    # A table of imported codes says how it cut the faces that it was measured on.
    alignment = settings.get("alignment") or settings.get("measured", {}).get("alignment")
    settings = alignment if isinstance(alignment, dict) else {}
    return {name: value for name, value in settings.items() if name not in _CHOICE}


def same_faces(faces: Sequence[Faces], labels: Sequence[str], *, common: bool) -> list[Faces]:
    """The tables' faces, all the same and in the same order.

    With `common` those that every table holds. Raises `RequestError` if the tables differ without
    it, if nothing is common, or if a face's id stands for different images.
    """
    shared = faces[0].ids
    for others in faces[1:]:
        shared = shared.filter(pc.is_in(shared, value_set=others.ids))
    if not common:
        _refuse_differences(faces, labels, shared)
    if not len(shared):
        raise RequestError(
            "the tables have no face to compare" + (" in common" if len(faces) > 1 else "")
        )
    chosen = [one.take(pc.index_in(shared, value_set=one.ids).to_numpy()) for one in faces]
    for one, label in zip(chosen[1:], labels[1:], strict=True):
        _refuse_other_images(chosen[0], one, labels[0], label)
    return chosen


def _refuse_differences(faces: Sequence[Faces], labels: Sequence[str], shared: pa.Array) -> None:
    count, first = 0, []
    for one, label in zip(faces, labels, strict=True):
        extra = one.ids.filter(pc.invert(pc.is_in(one.ids, value_set=shared)))
        count += len(extra)
        first += [f"'{name}' of '{label}'" for name in extra[:_LISTED].to_pylist()]
    if count:
        more = ", ..." if count > _LISTED else ""
        raise RequestError(
            f"the tables do not hold the same faces: {count} are not in all of them "
            f"({', '.join(first[:_LISTED])}{more}); --common compares the {len(shared)} that are"
        )


def _refuse_other_images(one: Faces, other: Faces, its: str, their: str) -> None:
    differ = pc.not_equal(one.sources, other.sources)  # null, no difference, where one is unknown
    rows = np.flatnonzero(differ.fill_null(False).to_numpy(zero_copy_only=False))
    if len(rows):
        named = ", ".join(
            f"'{name}'" for name in one.ids.take(pa.array(rows[:_LISTED])).to_pylist()
        )
        raise RequestError(
            f"{len(rows)} faces of the same id come from other images in '{their}' than in "
            f"'{its}': {named}"
        )
