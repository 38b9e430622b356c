"""Vectors of photos outside a table, made as the table's own were: alignment, model, settings.

Nothing here starts Ray: a photo is aligned in a child process and inverted in this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.alignment import AlignedFace, IsolatedAligner
from pipeline.choices import EARLIER_ALIGNMENT, Device
from pipeline.config import JobConfig
from pipeline.engine.inverter import Inverter
from pipeline.engine.resolve import resolve_job
from pipeline.engine.stages.align import face_row
from pipeline.errors import ConfigError, InputError, RequestError, printable
from pipeline.images import Rejection
from pipeline.metrics.identity import load_identity
from pipeline.models.pixels import to_unit
from pipeline.reports.targets import alignment_of
from pipeline.search.vectors import Vectors, known_ids
from pipeline.storage import ReadOptions, Sample, list_shards, read_samples
from pipeline.table.reader import Table

MOST_PHOTOS = 256


@dataclass(frozen=True)
class Photo:
    """Face of a photo: `name` is its URI, with #<face_index> where the photo has several."""

    name: str
    sample: Sample
    face: AlignedFace


def read_photos(table: Table, uri: str) -> list[Photo]:
    """Return the aligned faces of the image at `uri`, or of the images of a folder or archive.

    Raises `InputError` for a URI without images, and `RequestError` for an image without a usable
    face, for more than 256 images, and for a table that does not say how its faces were aligned.
    """
    settings = alignment_of(table.spec)
    if settings is None:
        raise RequestError(
            f"the table '{table.store.root}' was made from codes without images, so that no photo "
            "can be aligned like its faces: name an image id"
        )
    photos: list[Photo] = []
    with IsolatedAligner(settings) as aligner:
        for number, sample in enumerate(_samples(uri)):
            if number == MOST_PHOTOS:
                raise RequestError(f"'{uri}' has more than {MOST_PHOTOS} images: name fewer")
            photos += _faces(aligner, sample)
    return photos


def photo_vectors(vectors: Vectors, photos: list[Photo], device: Device = "auto") -> Tensor:
    """Return the vectors of photos, float32 [n, d], as those of the table of `vectors`.

    Raises `RequestError` for a face that the identity network does not find or that has no finite
    code, and where the installed model or settings are not those of the table.
    """
    if vectors.by == "identity":
        return vectors.of_identities(_identities(vectors.table, photos))
    return vectors.of_codes(_codes(vectors.table, photos, device))


def queries_of(
    vectors: Vectors, names: Sequence[str], device: Device = "auto"
) -> tuple[list[str], Tensor]:
    """Return the names and vectors, float32 [n, d], of image ids of the table and of photos.

    Ids come first. A name that the table does not have is read as a photo, a path or URI.
    """
    image_ids = known_ids(vectors.table, names)
    ids = [name for name in names if name in image_ids]
    photos = [
        photo for name in names if name not in image_ids for photo in _photos(vectors.table, name)
    ]
    parts = [vectors.of_ids(ids)] if ids else []
    parts += [photo_vectors(vectors, photos, device)] if photos else []
    return [*ids, *(photo.name for photo in photos)], torch.cat(parts)


def _photos(table: Table, name: str) -> list[Photo]:
    try:
        return read_photos(table, name)
    except InputError as error:
        raise InputError(
            f"--like '{printable(name)}' is not an image id of the table '{table.store.root}', and "
            f"as an image it cannot be read: {str(error).partition(';')[0]}"
        ) from error


def _samples(uri: str) -> Iterator[Sample]:
    samples = 0
    for shard in list_shards(uri, options=ReadOptions(sniff=True)):
        for sample in read_samples(shard, None, ReadOptions(sniff=True)):
            samples += 1
            yield sample
    if not samples:
        raise InputError(f"'{uri}' has no image")


def _faces(aligner: IsolatedAligner, sample: Sample) -> list[Photo]:
    outcome = None if sample.reject else next(aligner.process([sample.content]))
    if outcome is None or isinstance(outcome, Rejection):
        reason = outcome or sample.detail
        raise RequestError(printable(f"'{sample.uri}' gives no face: {reason}"))
    add_index = len(outcome.faces) > 1
    return [
        Photo(f"{sample.uri}#{face.face_index}" if add_index else sample.uri, sample, face)
        for face in outcome.faces
    ]


def _identities(table: Table, photos: list[Photo]) -> Tensor:
    network = load_identity(str(table.spec.config.get("identity") or "dlib"))
    if network is None or network.definition != table.spec.settings.get("identity"):
        raise RequestError(
            f"the table's identities were computed by: {table.spec.settings.get('identity')}; "
            "this installation has other weights: name an image id, or search --by w_plus"
        )
    with torch.inference_mode():
        vectors = network.embed(to_unit(np.stack([photo.face.pixels for photo in photos]))).cpu()
    for photo, row in zip(photos, vectors, strict=True):
        if not row.isfinite().all():
            raise RequestError(
                printable(
                    f"'{photo.name}': the identity network finds no face in the aligned crop; "
                    "search --by w_plus"
                )
            )
    return vectors


def _codes(table: Table, photos: list[Photo], device: Device) -> Tensor:
    job = resolve_job(_config(table, device))
    if job.spec.fingerprint != table.spec.fingerprint:
        raise RequestError(
            f"photos cannot be inverted as the faces of '{table.store.root}' were: its model or "
            "settings are not those that this installation has; name an image id"
        )
    settings = replace(job.inversion, keep_steps=False, keep_crops=False)
    inverter = Inverter(replace(settings, keep_reconstructions=False, keep_identity=False))
    codes = []
    for photo in photos:
        row = face_row(photo.sample.key, photo.sample.uri, "", photo.face)
        # One at a time: a code must not depend on the other photos.
        latents = inverter.rows([row]).latents
        if not latents:
            raise RequestError(printable(f"'{photo.name}' has no finite code"))
        codes.append(latents[0]["w_plus"])
    return torch.tensor(np.stack(codes))


def _config(table: Table, device: Device) -> JobConfig:
    """Return the config of the job that made the table."""
    given = table.spec.config
    if "method" not in table.spec.settings or "input" not in given:
        raise RequestError(
            f"the codes of '{table.store.root}' were imported, so that no photo can be inverted "
            "like its faces: name an image id"
        )
    if given.get("init"):
        raise RequestError(
            f"the codes of '{table.store.root}' began as those of another table, so that no photo "
            "can be inverted like its faces: name an image id, or search --by identity"
        )
    # The table may be a copy, whose origin cannot be reached from here.
    here = {"output": table.store.root, "device": device}
    # A setting without effect is stored as null.
    settings = {name: value for name, value in given.items() if value is not None}
    settings = {name: settings[name] for name in JobConfig.model_fields if name in settings}
    try:
        return JobConfig.model_validate({**EARLIER_ALIGNMENT, **settings, **here})
    except ValueError as error:
        raise ConfigError(f"the table's settings are not known here: {error}") from error
