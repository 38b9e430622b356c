"""Tables with given metrics for comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.table import Table, open_table
from pipeline.table.runs import put_run
from tests.table.rows import face_row, shard, writer


def face(l2: Sequence[float], **changes: Any) -> dict[str, Any]:
    """Return the columns of a face with these L2 values per step; the last step is the best."""
    steps = len(l2)
    numbers = {
        "l2_per_step": list(l2),
        "psnr_per_step": [10.0] * steps,
        "lpips_per_step": [value / 2 for value in l2],
        "id_similarity_per_step": [1 - value for value in l2],
        "residual_norm_per_step": [1.0] * steps,
    }
    final = {"l2": l2[-1], "lpips": l2[-1] / 2, "id_similarity": 1 - l2[-1]}
    cost = {"steps": steps, "best_step": steps, "generator_passes": steps + 1}
    return {**numbers, **final, **cost, **changes}


def write_table(
    root: object,
    faces: Mapping[str, Mapping[str, Any]],  # key -> what is not as in `face_row`
    *,
    inversion_seconds: float = 0.0,
    **description: Any,
) -> Table:
    """Write a table of one shard and a run record with `inversion_seconds`."""
    table = writer(root, part_size=1000, **description)
    rows = [face_row(key, **changes) for key, changes in faces.items()]
    summary = table.write_part(shard(), 0, samples=len(rows), latents=rows, rejects=[])
    table.commit_shard(shard(), [summary])
    run = {"faces": len(rows), "inversion_seconds": inversion_seconds}
    put_run(table.store, datetime(2026, 1, 1, tzinfo=UTC), "ab", run)
    return open_table(str(root))
