"""CPU seconds and peak memory of comparing two tables, as jobs/evaluate.py does it.

python tests/bench/evaluate.py [--faces N] [--plots]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.table import Columns, open_for_writing, open_table  # noqa: E402
from pipeline.table.parts import write_part  # noqa: E402
from pipeline.table.schema import latents_table, rejects_table  # noqa: E402
from tests.table.rows import DESCRIPTION, face_row, shard  # noqa: E402

REGIME = """\
Regime: two tables over the same faces, written through the library onto this disk, parts of 1,000.
Metrics, traits and ids are drawn for each face; the codes [10][512] are one and the same, as the
comparison reads none of them. Each face made 5 steps; one in ten has no identity.
  imports   CPU seconds until the libraries are there (PyTorch, DuckDB, Arrow)
  compare   CPU seconds, user and system, of comparing and writing the report; wall time depends on
            who else is on the machine
  peak      largest resident memory of that process, libraries included
The comparison is a process of its own; the tables lie in the page cache.
"""
PART, STEPS, N_STYLES = 1000, 5, 10
DRAWN = ("l2", "psnr", "lpips", "id_similarity")
TRAITS = ("face_px", "yaw", "sharpness")


def template() -> pa.Table:
    """A part of latents of which only what is the same in every part is used."""
    per_step = {f"{name}_per_step": [0.0] * STEPS for name in (*DRAWN, "residual_norm")}
    code = np.zeros((N_STYLES, 512), np.float32)
    row = face_row("a", w_plus=code, steps=STEPS, best_step=STEPS, **per_step)
    return latents_table([row] * PART, Columns(N_STYLES), shard().shard_id)


def drawn(part: pa.Table, number: int, seed: int) -> pa.Table:
    """Return the part with unique keys, and random numbers from `seed`."""
    rng = np.random.default_rng([seed, number])
    keys = [f"{number:06}-{face:04}" for face in range(part.num_rows)]
    columns: dict[str, Any] = {"key": keys}
    columns["image_id"] = [f"{shard().shard_id}/{key}#0" for key in keys]
    for name in DRAWN:
        steps = rng.random((part.num_rows, STEPS))
        if name == "id_similarity":
            steps[rng.random(part.num_rows) < 0.1] = np.nan
        expected = pa.array(steps.ravel(), from_pandas=True)
        columns[f"{name}_per_step"] = pa.ListArray.from_arrays(
            np.arange(len(steps) + 1) * STEPS, expected
        )
        columns[name] = pa.array(steps[:, -1], from_pandas=True)
    for name in TRAITS:
        columns[name] = rng.random(part.num_rows)
    for name, values in columns.items():
        place = part.schema.get_field_index(name)
        field = part.schema.field(name)
        array = values if isinstance(values, pa.Array) else pa.array(values)
        part = part.set_column(place, field, array.cast(field.type))
    return part


def write_table(root: Path, faces: int, seed: int) -> None:
    """A table of one shard with `faces`, rounded up to whole parts."""
    description = replace(DESCRIPTION, columns=Columns(N_STYLES))
    table = open_for_writing(str(root), description, part_size=PART)
    part, none = template(), rejects_table([], shard().shard_id)
    parts = [
        write_part(
            table.store,
            table.part_key(shard(), number),
            drawn(part, number, seed),
            none,
            samples=PART,
            metrics=description.metrics,
        )
        for number in range(-(-faces // PART))
    ]
    table.commit_shard(shard(), parts)


def compare(roots: list[str], output: str, *, plots: bool) -> dict[str, Any]:
    """Measure the comparison in this process."""
    import torch  # noqa: F401 - the job imports it to look for a GPU

    from pipeline.reports.comparison_report import compare_tables
    from pipeline.reports.requirements import ComparisonOptions

    imports, started = time.process_time(), time.perf_counter()
    options = ComparisonOptions(labels=["one", "two"], plots=plots)
    compare_tables([open_table(root) for root in roots], options).write(output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "imports_cpu_seconds": round(imports, 2),
        "compare_cpu_seconds": round(time.process_time() - imports, 2),
        "compare_seconds": round(time.perf_counter() - started, 2),
        "peak_gib": round(peak / 2**20, 2),
    }


def main() -> None:
    """Write the tables, compare them in a process of its own, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faces", type=int, default=20_000, help="of each table (default 20000)")
    parser.add_argument("--plots", action="store_true", help="draw plots too")
    parser.add_argument("--compare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        *roots, output = options.compare
        print(json.dumps(compare(roots, output, plots=options.plots)))
        return
    print(REGIME)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("one", "two", "report")]
        for seed, root in enumerate(paths[:2]):
            write_table(root, options.faces, seed)
        command = [sys.executable, __file__, "--compare", *map(str, paths)]
        result = json.loads(subprocess.check_output(command + ["--plots"] * options.plots))
    for name, value in result.items():
        print(f"{name:20} {value:8}")
    print(
        json.dumps({"bench": "evaluate", "faces": options.faces, "plots": options.plots, **result})
    )


if __name__ == "__main__":
    main()
