"""Cost of resuming a large table: shards listed, compared, skipped.

python tests/bench/engine.py [--shards 100000] [--open-parts 20000] [--s3-shards 5000]

What a part, a start and the driver's memory cost is measured by `jobs/benchmark.py --simulate`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.metrics.registry import PER_STEP  # noqa: E402
from pipeline.storage import Shard, list_shards  # noqa: E402
from pipeline.table import (  # noqa: E402
    Counts,
    PartRecord,
    ShardRecord,
    TableWriter,
    open_for_writing,
    open_table,
)
from pipeline.table.part_index import PartIndex  # noqa: E402
from pipeline.table.shard_index import table_stats  # noqa: E402
from pipeline.table.shard_records import manifest_name  # noqa: E402
from pipeline.table.spec import to_json  # noqa: E402
from pipeline.table.stats import MetricSums, Stats  # noqa: E402
from pipeline.table.status import table_status  # noqa: E402
from tests.s3_server import make_bucket, run_server  # noqa: E402
from tests.table.rows import DESCRIPTION, face_row  # noqa: E402

REGIME = """\
Regime: a table of many committed shards, one part each, and the listing of the same input, without
Ray. What is timed is what `make_plan` does before the first image is read.
  list      the input's shards alone
  first     every state, when no index is there: one listing, then a read of each manifest
  again     every state from the index that the first left: what each later start takes
  status    `jobs/status.py`
  card      what the card says of all rows, from the index
  rows      means of the open parts' rows by SQL, which reads each file
  open      states of shards that are not committed: from the index of their parts, and without it,
            when the footer of each is read
  resident  how much the process grew over these, and what that is a shard
"""
NOTHING = "0" * 64
MEANS = "SELECT " + ", ".join(f"avg({name}_per_step[1])" for name in PER_STEP) + " FROM latents"


def resident() -> float:
    """Largest resident megabytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def figures(draws: random.Random) -> str:
    """Return random sums of a part of five steps, as JSON."""
    sums = {name: [float(f"{draws.random():.9g}") for _ in range(5)] for name in PER_STEP}
    counts = {name: [250] * 5 for name in PER_STEP}
    counted = Counts(reasons=Counter({"no_face": 6}))
    return Stats(counted, MetricSums(250, sums, counts)).figures_text()


def committed(table: TableWriter, shards: Iterator[Shard]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the manifests."""
    draws = random.Random(0)
    for shard in shards:
        part = PartRecord(
            samples=256,
            faces=250,
            rejects=6,
            latents_sha256=NOTHING,
            rejects_sha256=NOTHING,
            figures=figures(draws),
        )
        manifest = ShardRecord.of(shard, [part], table.spec.fingerprint, table.part_size)
        yield manifest_name(shard.shard_id), to_json(manifest.to_dict())


def timed(work: Any) -> tuple[dict[str, float], Any]:
    """Seconds by the clock and of this process's CPU, and what `work` gave."""
    started, cpu = time.perf_counter(), time.process_time()
    given = work()
    seconds, busy = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2)}, given


def on_disk(count: int) -> dict[str, Any]:
    """A table of `count` shards on this disk."""
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "in", Path(folder) / "table"
        source.mkdir()
        for number in range(count):
            (source / f"shard-{number:07d}.tar").touch()
        table = open_for_writing(str(root), DESCRIPTION, part_size=256)
        for kind in ("_shards", "latents", "rejects"):
            (root / kind).mkdir()
        empty = Path(folder) / "empty"
        empty.touch()
        for name, content in committed(table, list_shards(str(source))):
            (root / name).write_bytes(content)
            for kind in ("latents", "rejects"):
                os.link(empty, root / kind / f"{Path(name).stem}-00000.parquet")
            if (root / "latents" / f"{Path(name).stem}-00000.parquet").stat().st_nlink > 60_000:
                empty.unlink()
                empty.touch()
        command = [
            sys.executable,
            str(ROOT / "tests" / "bench" / "engine.py"),
            "--resume",
            str(root),
            "--input",
            str(source),
        ]
        first, again = (json.loads(subprocess.check_output(command)) for _ in range(2))
    return {"shards": count, "first": first["again"], **again}


def resume(root: str, source: str) -> dict[str, Any]:
    """Read the states of all shards of a table in this process, as the start of a job does."""
    listing, _ = timed(lambda: sum(1 for _ in list_shards(source)))
    before = resident()
    table = TableWriter(root, DESCRIPTION, part_size=256)
    again, done = timed(lambda: sum(state.done for state in table.states(list_shards(source))))
    grown = resident() - before
    showing, status = timed(lambda: table_status(root))
    card, _ = timed(lambda: table_stats(table.store))
    return {
        "done": done,
        "list": listing,
        "again": again,
        "grown_megabytes": round(grown, 1),
        "bytes_a_shard": round(grown * 2**20 / max(1, done)),
        "status": showing,
        "status_parts": status.parts,
        "card": card,
    }


def open_parts(count: int) -> dict[str, Any]:
    """Measure one shard that was stopped after `count` parts of one face each."""
    with tempfile.TemporaryDirectory() as folder:
        table = open_for_writing(folder, DESCRIPTION, part_size=1)
        index = PartIndex(table.store)
        shard = Shard("open", "/in/open.tar", "tar", 1, "e")
        os.fsync = lambda _: None  # of the files that are made here alone
        for part in range(count):
            rows = [face_row(str(part))]
            summary = table.write_part(shard, part, samples=1, latents=rows, rejects=[])
            index.add(table.with_etags(summary))
        indexed, _ = timed(lambda: list(table.states([shard])))
        for name in table.store.names("_index/parts/"):
            table.store.remove(name)
        footers, (state,) = timed(lambda: list(table.states([shard])))
        rows, _ = timed(lambda: open_table(folder).sql(MEANS))
        return {
            "open_parts": len(state.parts),
            "indexed": indexed,
            "footers": footers,
            "rows": rows,
        }


def on_s3(count: int) -> dict[str, Any]:
    """A table of `count` shards in a bucket of a server on this machine."""
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder)) as server:
        os.environ.update(server.env)
        root = f"{make_bucket(server, 'bench')}/table"
        table = open_for_writing(root, DESCRIPTION, part_size=256)
        shards = [Shard(f"s-{n:07d}", f"/in/{n}.tar", "tar", 1, "e") for n in range(count)]
        contents = dict(committed(table, iter(shards)))
        paths = {table.store.path(name): content for name, content in contents.items()}
        table.store.fs.pipe(paths, batch_size=32)
        first, _ = timed(lambda: sum(state.done for state in table.states(shards)))
        again, done = timed(lambda: sum(state.done for state in table.states(shards)))
        return {"shards": count, "done": done, "first": first, "again": again}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000, help="on disk")
    parser.add_argument("--open-parts", type=int, default=20_000)
    parser.add_argument("--s3-shards", type=int, default=5_000)
    parser.add_argument("--resume", metavar="TABLE", help="time one start over a prepared table")
    parser.add_argument("--input", metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.resume:
        print(json.dumps(resume(arguments.resume, arguments.input)))
        return
    print(REGIME)
    results: dict[str, Any] = {"benchmark": "engine"}
    for name, measure, count in (
        ("disk", on_disk, arguments.shards),
        ("s3", on_s3, arguments.s3_shards),
        ("open", open_parts, arguments.open_parts),
    ):
        results[name] = measure(count) if count else None
        print(f"{name:>5}  {results[name]}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
