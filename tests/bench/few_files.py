"""Seconds and peak memory of `export_table --as parquet`, and of reading codes by id out of it.

python tests/bench/few_files.py [--faces N] [--styles N] [--shuffled] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.interop.file_series import Series, SeriesOptions  # noqa: E402
from pipeline.interop.parquet_codes import ParquetCodes  # noqa: E402
from pipeline.interop.parquet_files import export_parquet  # noqa: E402
from pipeline.table import Columns, open_for_writing, open_table  # noqa: E402
from pipeline.table.parts import write_part  # noqa: E402
from pipeline.table.schema import latents_table, rejects_table  # noqa: E402
from pipeline.table.selection import Selection  # noqa: E402
from tests.table.rows import DESCRIPTION, face_row, shard  # noqa: E402

REGIME = """\
Regime: a table written through the library onto this disk, parts of 1,000 faces, 20 parts a shard;
codes of zeros but for two numbers, so that the table is small (the export does not compress codes).
  export        --as parquet --rows-per-file 100000, sorted by image id, or with --shuffled in an
                order that mixes all files; peak: largest resident memory of that process
  open, codes   opening the export and reading 1,000 codes of ids drawn from all rows (ParquetCodes)
  duckdb_range  the codes of 1,000 ids that follow each other, by SQL over all files
  duckdb_drawn  the codes of the 1,000 drawn ids, by SQL
  duckdb_mean   SELECT avg(l2) over all files
Seconds are of the clock, *_cpu of all threads of the process: compare these on a shared machine.
The files lie in the page cache as far as it has room.
"""
PART, PARTS = 1000, 20


def write_table(root: Path, faces: int, n_styles: int) -> None:
    """A table of `faces`, rounded up to whole parts; face n has its number in its code."""
    columns = Columns(n_styles)
    table = open_for_writing(str(root), replace(DESCRIPTION, columns=columns), part_size=PART)
    row = face_row("a", w_plus=np.zeros((n_styles, 512), np.float32))
    template = latents_table([row] * PART, columns, "s")
    pool = np.zeros((PART, n_styles, 512), np.float16)
    total = -(-faces // PART)
    for first in range(0, total, PARTS):
        source = shard(f"s-{first // PARTS:05d}")
        parts = []
        for part in range(min(PARTS, total - first)):
            rows = _part(template, source.shard_id, (first + part) * PART, pool)
            none = rejects_table([], source.shard_id)
            key = table.part_key(source, part)
            metrics = DESCRIPTION.metrics
            parts.append(write_part(table.store, key, rows, none, samples=PART, metrics=metrics))
        table.commit_shard(source, parts)


def _part(template: pa.Table, shard_id: str, first: int, pool: np.ndarray) -> pa.Table:
    numbers = np.arange(first, first + PART)
    codes = pool.copy()
    codes[:, 0, 0], codes[:, 0, 1] = numbers // 2048, numbers % 2048  # exact in float16
    kind = template.schema.field("w_plus").type
    rows = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=kind.value_type)
    keys = [f"img-{number:09d}.jpg" for number in numbers]
    changed = {
        "image_id": pa.array([f"{shard_id}/{key}#0" for key in keys]),
        "shard": pa.array([shard_id] * PART),
        "key": pa.array(keys),
        "w_plus": pa.FixedSizeListArray.from_arrays(rows, type=kind),
        "l2": pa.array(numbers.astype(np.float32) / 1e6),
    }
    for name, values in changed.items():
        place = template.schema.get_field_index(name)
        template = template.set_column(place, template.schema.field(name), values)
    return template


def export(root: str, output: str, *, shuffled: bool) -> dict[str, Any]:
    """Measure the export in this process."""
    started = time.perf_counter()
    order = "md5(image_id)" if shuffled else ""
    options = SeriesOptions(100_000, None if shuffled else "image_id")
    selection = Selection(open_table(root), order=order)
    result = export_parquet(Series.of(selection, options, "parquet"), output)
    return {
        "files": result["files"],
        "export_seconds": round(time.perf_counter() - started, 1),
        "export_cpu": round(time.process_time(), 1),
        "export_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def read(output: str, ids: pa.Array) -> dict[str, Any]:
    """Measure the reading, and check what was read."""
    clock = Clock()
    drawn = np.random.default_rng(1).choice(len(ids), min(1000, len(ids)), replace=False)
    names = ids.take(pa.array(drawn)).to_pylist()
    with clock("open"):
        codes = ParquetCodes(output)
    with clock("codes"):
        found = codes.w_plus(names)
    assert (found[:, 0, 0] * 2048 + found[:, 0, 1] == drawn).all()
    files = f"read_parquet('{output}/*.parquet')"
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    follow = ids.slice(len(ids) // 2, 1000).to_pylist()
    for name, chosen in (("duckdb_range", follow), ("duckdb_drawn", names)):
        listed = ", ".join(f"'{image}'" for image in chosen)
        query = f"SELECT image_id, w_plus FROM {files} WHERE image_id IN ({listed})"
        with clock(name):
            rows = connection.sql(query).to_arrow_table()
        assert rows.num_rows == len(chosen)
    with clock("duckdb_mean"):
        connection.sql(f"SELECT avg(l2) FROM {files}").fetchall()
    return clock.seconds


class Clock:
    """Seconds of the clock and of the CPU, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block."""
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
        self.seconds[f"{name}_cpu"] = round(time.process_time() - cpu, 2)


def main() -> None:
    """Write a table, export it in a process of its own, read codes, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faces", type=int, default=20_000, help="(default 20000)")
    parser.add_argument("--styles", type=int, default=18, help="rows of a code (default 18)")
    parser.add_argument("--shuffled", action="store_true", help="an order that mixes all files")
    parser.add_argument("--folder", help="work here and keep the files (default: a temporary one)")
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        print(json.dumps(export(*options.export, shuffled=options.shuffled)))
        return
    print(REGIME)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        root, output = folder / "table", folder / ("shuffled" if options.shuffled else "sorted")
        if not root.exists():
            write_table(root, options.faces, options.styles)
        command = [sys.executable, __file__, "--export", str(root), str(output)]
        result = json.loads(subprocess.check_output(command + ["--shuffled"] * options.shuffled))
        ids = open_table(str(root)).arrow("SELECT image_id FROM latents")["image_id"]
        result |= read(str(output), ids.combine_chunks())
    for name, value in result.items():
        print(f"{name:22} {value:8}")
    shown = {"faces": options.faces, "styles": options.styles, "shuffled": options.shuffled}
    print(json.dumps({"bench": "few_files", **shown, **result}))


if __name__ == "__main__":
    main()
