"""A table of faces with random metrics, for tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.table.rows import face_row, reject_row, shard, writer

HOSTILE = "</script><script>stolen=1</script><img src=x onerror=stolen=2>'\"&{{7*7}}\u202e"


def faces(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Return rows of `count` faces: face i has the steps 3, or 2 for every fourth."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(count):
        steps = 2 if index % 4 == 0 else 3
        l2 = np.sort(rng.lognormal(-4, 0.5, steps))[::-1]
        lpips = np.sort(rng.uniform(0.1, 0.5, steps))[::-1]
        values = {
            "steps": steps,
            "best_step": steps,
            "l2": l2[-1],
            "psnr": 20 * np.log10(2) - 10 * np.log10(l2[-1]),
            "lpips": lpips[-1],
            "id_similarity": np.nan if index == 0 else rng.uniform(-0.2, 1),
            "face_px": rng.uniform(50, 500),
            "yaw": rng.normal(0, 0.4),
            "sharpness": rng.lognormal(5, 1),
            "l2_per_step": l2,
            "lpips_per_step": lpips,
            "psnr_per_step": 20 * np.log10(2) - 10 * np.log10(l2),
            "id_similarity_per_step": rng.uniform(0, 1, steps),
            "residual_norm_per_step": rng.uniform(0, 1, steps),
            "source_sha256": f"{index:064x}",
        }
        rows.append(face_row(f"photos/{index:03d}.jpg", **values, **changes))
    return rows


def write_faces(root: object, rows: list[dict[str, Any]], parts: int = 1, **spec: Any) -> None:
    """Write the faces and one reject in `parts` parts of one shard, and commit it."""
    table = writer(root, part_size=len(rows), **spec)
    size = -(-len(rows) // parts)
    records = [
        table.write_part(
            shard(),
            part,
            samples=len(rows[part * size : part * size + size]) + (part == 0),
            latents=rows[part * size : part * size + size],
            rejects=[reject_row(f"reject {HOSTILE}")] if part == 0 else [],
        )
        for part in range(parts)
    ]
    table.commit_shard(shard(), records)
