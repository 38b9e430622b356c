"""Tables with given identity vectors or codes, and tables of real photos, made without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.alignment import Aligner
from pipeline.config import JobConfig
from pipeline.engine.inverter import Inverter
from pipeline.engine.resolve import resolve_job
from pipeline.engine.stages.align import face_row as aligned_row
from pipeline.models import load_model
from pipeline.storage import list_shards
from pipeline.table import Columns, Table, open_for_writing, open_table
from tests.table.rows import N_STYLES, face_row, shard, writer

Vectors = NDArray[np.float32]


def unit(rows: Vectors) -> Vectors:
    """Return the rows scaled to unit length."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def drawn(count: int, dimensions: int = 16, seed: int = 0) -> Vectors:
    """Return unit vectors in random directions."""
    numbers = np.random.default_rng(seed).standard_normal((count, dimensions))
    return unit(numbers.astype(np.float32))


def table_of(root: Path | str, identities: list[Vectors | None]) -> Table:
    """Write a table of faces s-0/0000#0, s-0/0001#0, ... with `identities`, as float32."""
    table = writer(root, columns=Columns(N_STYLES, "float32", identity=True))
    code = np.zeros((N_STYLES, 512), np.float32)
    rows = [
        face_row(f"{number:04}", w_plus=code, identity=vector)
        for number, vector in enumerate(identities)
    ]
    part = table.write_part(shard(), 0, samples=len(rows), latents=rows, rejects=[])
    table.commit_shard(shard(), [part])
    return open_table(str(root))


def table_of_codes(root: Path, model: str, codes: Vectors) -> Table:
    """Write a table of `model`, a bundle, with `codes` [n, n_styles, 512] and no identities."""
    table = writer(
        root,
        columns=Columns(codes.shape[1], "float32"),
        config={"model": model},
        settings={"model": load_model(model).fingerprint},
    )
    rows = [face_row(f"{number:04}", w_plus=code) for number, code in enumerate(codes)]
    part = table.write_part(shard(), 0, samples=len(rows), latents=rows, rejects=[])
    table.commit_shard(shard(), [part])
    return open_table(str(root))


def table_of_photos(folder: Path, photos: Mapping[str, bytes], **settings: object) -> Table:
    """Write `photos` below `folder` and the table that a job makes of them, without Ray."""
    images = folder / "images"
    images.mkdir()
    for name, content in photos.items():
        (images / name).write_bytes(content)
    given = {"input": str(images), "output": str(folder / "table"), "steps": 2}
    job = resolve_job(JobConfig.model_validate(given | settings))
    aligner, inverter = Aligner(job.alignment), Inverter(job.inversion)
    (source,) = list_shards(str(images))
    faces = [
        aligned_row(name, f"{images}/{name}", "", face)
        for name, content in sorted(photos.items())
        for face in aligner.align(content).faces
    ]
    rows = inverter.rows([face | {"fields": "{}"} for face in faces], source.shard_id).latents
    table = open_for_writing(str(folder / "table"), job.spec, part_size=256)
    part = table.write_part(source, 0, samples=len(photos), latents=rows, rejects=[])
    table.commit_shard(source, [part])
    return open_table(str(folder / "table"))
