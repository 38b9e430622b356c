"""Rows, shards and small tables to test with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.storage import Shard, Store
from pipeline.table import Columns, ShardRecord, TableSpec, TableWriter, open_for_writing
from pipeline.table.parts import read_footer
from pipeline.table.resume import ShardState

N_STYLES = 6
COLUMNS = Columns(N_STYLES)
DESCRIPTION = TableSpec(
    columns=COLUMNS,
    settings={"weights": "abc", "steps": 3, "alignment": {"faces": "largest"}},
    layout={"files_per_shard": 1000},
    config={"batch_size": 4},
    model={"name": "demo", "licence": "MIT"},
    metrics={"lpips": "AlexNet, version 0.1, 256 px", "l2": "mean square in [-1, 1], 256 px"},
)


def code(key: str, face: int = 0) -> np.ndarray:
    """Return a code [6, 512] of float32 numbers that float16 holds exactly."""
    generator = np.random.default_rng([*key.encode(), face])
    return generator.standard_normal((N_STYLES, 512)).astype(np.float16).astype(np.float32)


def face_row(key: str, face: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "key": key,
        "face_index": face,
        "n_faces": 1,
        "source_uri": f"s3://in/{key}.jpg",
        "source_sha256": "ab" * 32,
        "width": 640,
        "height": 480,
        "face_box": np.array([1, 2, 3, 4], np.float32),
        "landmarks": np.arange(136, dtype=np.float32).reshape(68, 2),
        "align_quad": np.arange(8, dtype=np.float64).reshape(4, 2),
        "face_px": np.float32(200),
        "roll_deg": -1.5,
        "yaw": 0.25,
        "sharpness": 0.5,
        "pad_fraction": 0.0,
        "detector_score": 2.5,
        "w_plus": code(key, face),
        "method": "restyle",
        "steps": 3,
        "best_step": 3,
        "generator_passes": 3,
        "converged": np.bool_(True),
        "refined_from": None,
        "l2": 0.125,
        "psnr": 18.0,
        "lpips": 0.25,
        "id_similarity": 0.5,
        "l2_per_step": np.array([0.5, 0.25, 0.125]),
        "psnr_per_step": [12.0, 15.0, 18.0],
        "lpips_per_step": [0.5, 0.375, 0.25],
        "id_similarity_per_step": np.array([np.nan, 0.25, 0.5]),
        "residual_norm_per_step": [3.0, 2.0, 1.0],
        "w_plus_variance": 0.5,
        "w_avg_distance": 1.5,
    }
    return {**row, **changes}


def reject_row(key: str, reason: str = "no_face", face: int | None = None) -> dict[str, Any]:
    return {
        "key": key,
        "face_index": face,
        "source_uri": f"s3://in/{key}.jpg",
        "source_sha256": "cd" * 32,
        "reason": reason,
        "detail": "512×384, upsample 0 and 1 tried",
    }


def shard(shard_id: str = "s-0", etag: str = "etag-1", **changes: Any) -> Shard:
    return replace(Shard(shard_id, f"s3://in/{shard_id}.tar", "tar", 100, etag), **changes)


def writer(root: object, part_size: int = 4, **changes: Any) -> TableWriter:
    return open_for_writing(str(root), replace(DESCRIPTION, **changes), part_size=part_size)


def write_shard(table: TableWriter, source: Shard, *, commit: bool = True, **more: Any) -> None:
    """Write two parts: four samples with four faces and two rejects; two samples without a face.

    `more` are values of further columns.
    """
    first = table.write_part(
        source,
        0,
        samples=4,
        latents=[
            face_row(key, face, **more) for key, face in (("a", 0), ("x/b", 0), ("c", 0), ("c", 1))
        ],
        rejects=[reject_row("d"), reject_row("c", "face_too_small", 2)],
    )
    second = table.write_part(
        source, 1, samples=2, latents=[], rejects=[reject_row("e"), reject_row("f", "crashed")]
    )
    if commit:
        table.commit_shard(source, [second, first])


def state_of(table: TableWriter, source: Shard) -> ShardState:
    (state,) = table.states([source])
    return state


def commit(
    table: TableWriter, source: Shard, left_out: dict[str, int] | None = None
) -> ShardRecord:
    """Commit a shard whose parts are written; return its record for an index."""
    record = table.commit_shard(source, state_of(table, source).parts.values(), left_out)
    return table.with_manifest_etag(record)


COUNTS_OF_ONE = {
    "shards": 1,
    "parts": 2,
    "samples": 6,
    "faces": 4,
    "rejects": 4,
    "samples_with_faces": 3,
    "samples_rejected": 3,
}


def damage_codes(store: Store, name: str) -> None:
    """Damage the compressed codes of a latents file, for which Arrow raises a plain OSError."""
    group = read_footer(store, name).row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    codes = next(each for each in columns if each.path_in_schema.startswith("w_plus."))
    start, content = codes.data_page_offset, store.get(name)
    store.put(name, content[: start + 16] + bytes(64) + content[start + 80 :])
