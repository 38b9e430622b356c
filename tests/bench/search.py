"""Seconds and memory of searches in a table by identity: neighbours, duplicates, clusters.

python tests/bench/search.py [--faces N] [--duplicates-of N] [--table FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.table import Columns, open_for_writing, open_table  # noqa: E402
from pipeline.table.parts import LATENTS, part_name  # noqa: E402
from pipeline.table.schema import latents_table  # noqa: E402
from pipeline.table.selection import Selection  # noqa: E402
from tests.table.rows import DESCRIPTION, face_row, shard  # noqa: E402

if TYPE_CHECKING:
    from pipeline.search.duplicates import Duplicates

REGIME = """\
Regime: a table on this disk, in part files of 1,000 rows, row groups as the library's. Identities
of 128 numbers are drawn for each face, so that strangers have cosines near 0; in each part one face
is a noisy copy of a face of an earlier part (cosine about 0.98). Codes are [1][512], zero; columns
that a search does not read are null.
  nearest     the 10 nearest faces of 10 faces: reads the table once; again: vectors in memory
  duplicates  groups of at least 0.95 among the first --duplicates-of faces: all pairs
  approximate  the same among all faces, by faiss: lists around centres
  clusters    20 clusters by at most 10 passes, vectors in memory
Seconds are wall time and CPU time of all threads; peak is the largest resident memory of the
process, libraries (about 0.3 GiB) included. The table lies in the page cache.
"""
PART, DIMENSIONS, NOISE = 1000, 128, 0.2
COPY = 500  # the face of each part that is a copy, and the one of an earlier part that it copies


def vectors_of(part: int) -> np.ndarray:
    """Return the identities of a part, float16 [1000, 128]."""
    rows = _drawn(part)
    if part:
        noise = _drawn(10**6 + part)[0]
        rows[COPY] = _unit(_drawn(original_of(part))[0] + NOISE * noise)
    return rows.astype(np.float16)


def original_of(part: int) -> int:
    """Return the part whose first face the copy in `part` is like."""
    return part // 2


def _drawn(part: int) -> np.ndarray:
    return _unit(np.random.default_rng(part).standard_normal((PART, DIMENSIONS)))


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def name_of(part: int, face: int) -> str:
    return f"{shard().shard_id}/{part:06}-{face:04}#0"


def write_table(root: Path, faces: int) -> None:
    """Write a table of one shard with `faces`, rounded up to whole parts."""
    columns = Columns(1, identity=True)
    row = face_row("a", w_plus=np.zeros((1, 512), np.float32), identity=np.zeros(DIMENSIONS))
    same = _without_facts(latents_table([row] * PART, columns, shard().shard_id))
    open_for_writing(str(root), replace(DESCRIPTION, columns=columns), part_size=PART)
    (root / LATENTS).mkdir()
    options = {"compression": "zstd", "row_group_size": 128, "use_dictionary": False}
    for number in range(-(-faces // PART)):
        name = part_name(LATENTS, shard().shard_id, number)
        pq.write_table(_part(same, number), root / name, **options)


def _without_facts(rows: pa.Table) -> pa.Table:
    """Return the rows with nulls in all columns that may have them."""
    columns = [
        pa.nulls(rows.num_rows, field.type) if field.nullable else rows[field.name]
        for field in rows.schema
    ]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def _part(same: pa.Table, number: int) -> pa.Table:
    """Return a part with ids and identities of its own."""
    offsets = pa.array(np.arange(PART + 1) * DIMENSIONS, pa.int32())
    columns = {
        "key": pa.array([f"{number:06}-{face:04}" for face in range(PART)]),
        "image_id": pa.array([name_of(number, face) for face in range(PART)]),
        "identity": pa.ListArray.from_arrays(offsets, pa.array(vectors_of(number).ravel())),
    }
    for name, values in columns.items():
        place = same.schema.get_field_index(name)
        same = same.set_column(place, same.schema.field(name), values)
    return same


def search(root: str, duplicates_of: int) -> dict[str, Any]:
    """Measure the searches in this process."""
    import torch

    from pipeline.search.clusters import find_clusters
    from pipeline.search.duplicates import find_duplicates, find_most_duplicates
    from pipeline.search.neighbours import nearest
    from pipeline.search.vectors import Vectors

    table = open_table(root)
    faces = Selection(table).count()
    result: dict[str, Any] = {"threads": torch.get_num_threads()}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        value = work()
        result[f"{name}_seconds"] = round(time.perf_counter() - wall, 2)
        result[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 2)
        return value

    vectors = Vectors(Selection(table), "identity")
    copied = list(range(1, -(-faces // PART)))[-10:]
    ids = [name_of(part, COPY) for part in copied]
    queries = timed("queries", lambda: vectors.of_ids(ids))
    found = timed("nearest", lambda: nearest(vectors, queries, 10, ids))
    timed("nearest_again", lambda: nearest(vectors, queries, 10, ids))
    originals = [name_of(original_of(part), 0) for part in copied]
    result["copies_found"] = [row[0].image_id for row in found] == originals
    clusters = timed("clusters", lambda: find_clusters(vectors, 20, most_iterations=10))
    result["cluster_passes"] = clusters.iterations
    some = Vectors(Selection(table, limit=duplicates_of), "identity")
    result |= planted(timed("duplicates", lambda: find_duplicates(some, 0.95)), "duplicates")
    groups = timed("approximate", lambda: find_most_duplicates(vectors, 0.95))
    result |= planted(groups, "approximate")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result | {"faces": faces, "peak_gib": round(peak / 2**20, 2)}


def planted(groups: Duplicates, name: str) -> dict[str, int]:
    """Return how many planted copies were found among how many, and how many other faces."""
    names = set(groups.ids.to_pylist())
    copies = range(1, groups.rows // PART)
    pairs = [{name_of(part, COPY), name_of(original_of(part), 0)} for part in copies]
    others = names - {name_of(part, face) for part in [0, *copies] for face in (0, COPY)}
    return {
        f"{name}_of": groups.rows,
        f"{name}_planted": len(copies),
        f"{name}_found": sum(pair <= names for pair in pairs),
        f"{name}_others": len(others),
    }


def main() -> None:
    """Write the table, search it in a process of its own, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faces", type=int, default=50_000, help="of the table (default 50000)")
    parser.add_argument(
        "--duplicates-of", type=int, default=20_000, help="compared in pairs (default 20000)"
    )
    parser.add_argument("--table", type=Path, help="keep the table here, or use the one there")
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(json.dumps(search(options.search[0], int(options.search[1]))))
        return
    print(REGIME)
    with tempfile.TemporaryDirectory() as folder:
        root = options.table or Path(folder) / "table"
        if not (root / "_table.json").exists():
            write_table(root, options.faces)
        command = [sys.executable, __file__, "--search", str(root), str(options.duplicates_of)]
        result = json.loads(subprocess.check_output(command))
    for name, value in result.items():
        print(f"{name:24} {value!s:>10}")
    print(json.dumps({"bench": "search", **result}))


if __name__ == "__main__":
    main()
