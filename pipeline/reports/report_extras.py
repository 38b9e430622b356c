"""Parts of a table's report that need its model or its vectors: pictures and similar faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.choices import Device
from pipeline.errors import PipelineError
from pipeline.table.model_lookup import model_of
from pipeline.table.selection import Selection

if TYPE_CHECKING:
    from pipeline.reports.face_pictures import FacePicture  # PyTorch is slow to import

# Every pair is compared: 10,000 faces take 25 s on two cores.
MOST_COMPARED = 10_000
PICTURE_WIDTH = 160
_GROUPS = 8  # listed, the largest ones
_IDS_PER_GROUP = 6


@dataclass(frozen=True)
class SimilarGroup:
    """Faces that a chain of similar pairs connects; `ids` are the first of its `size` faces."""

    size: int
    similarity: float  # of its most similar pair
    ids: tuple[str, ...]


@dataclass(frozen=True)
class SimilarFaces:
    """Largest groups of similar faces, and a line that says what was compared."""

    text: str
    groups: tuple[SimilarGroup, ...] = ()


@dataclass(frozen=True)
class ReportExtras:
    """Pictures by image id, a line about targets that cannot be had, and similar faces."""

    pictures: Mapping[str, FacePicture] = field(default_factory=dict)
    no_targets: str = ""
    similar: SimilarFaces | None = None


def report_extras(
    selection: Selection,
    faces: int,
    ids: Sequence[str],
    *,
    pictures: bool = False,
    threshold: float = 0.98,
    model_name: str | None = None,
    device: Device = "cpu",
) -> ReportExtras:
    """Return the similar ones of `faces` selected faces, and with `pictures` those of `ids`.

    A `threshold` of 0 searches no similar faces. Raises `ModelError` if the pictures need a model
    that is missing or is not the table's own.
    """
    similar = similar_faces(selection, faces, threshold) if threshold else None
    if not pictures:
        return ReportExtras(similar=similar)
    from pipeline.inversion import ready_device
    from pipeline.reports.face_pictures import face_pictures
    from pipeline.reports.targets import Targets

    model = model_of(selection.table, model_name, ready_device(device))
    targets = Targets(selection.table)
    grouped = [image_id for group in (similar.groups if similar else ()) for image_id in group.ids]
    drawn = face_pictures(selection.table, model, targets, [*ids, *grouped], PICTURE_WIDTH)
    return ReportExtras(drawn, targets.summary(), similar)


def similar_faces(selection: Selection, faces: int, threshold: float) -> SimilarFaces:
    """Return the groups of faces whose similarity is `threshold` or more.

    Compares identity vectors where the table has them, else the codes.
    """
    if faces > MOST_COMPARED:
        return SimilarFaces(
            f"Not searched: {faces:,} faces are more than the {MOST_COMPARED:,} that a report "
            f"compares. `restyle find --duplicates {threshold:g}` compares all."
        )
    from pipeline.search.duplicates import find_duplicates
    from pipeline.search.requests import default_by
    from pipeline.search.vectors import Vectors

    by = default_by(selection.table)
    try:
        vectors = Vectors(selection, by)
    except PipelineError as error:  # the model whose average the codes are compared to
        return SimilarFaces(f"Not searched: {error}")
    result = find_duplicates(vectors, threshold)
    ids = np.array(result.ids.to_pylist(), object)
    groups = []
    for number in range(result.count):
        members = result.groups == number
        listed = tuple(str(image_id) for image_id in ids[members][:_IDS_PER_GROUP])
        best = float(result.similarities[members].max())
        groups.append(SimilarGroup(int(members.sum()), best, listed))
    groups.sort(key=lambda group: (-group.size, -group.similarity))
    kind = "identity vectors" if by == "identity" else "W+ codes"
    return SimilarFaces(
        f"{result.count:,} groups with a similarity of {threshold:g} or more, by the {kind} of "
        f"{result.rows:,} faces: copies, photos of one person, and faces that the method takes "
        f"for alike. The largest {min(_GROUPS, len(groups))} are listed.",
        tuple(groups[:_GROUPS]),
    )
