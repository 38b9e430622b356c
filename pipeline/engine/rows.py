"""What travels between the stages: one row a part, its tables as Arrow IPC bytes.

Ray merges, splits and drops blocks of many rows, so a part is one row (kind `part`). A shard's
reader ends with a row of kind `end` that says how many parts and samples there were. A stage that
fails turns its part into a row of kind `failed`; rows that are not parts pass through every stage.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipeline.engine.attempts import attempted, node_address
from pipeline.errors import PipelineError
from pipeline.redaction import trace_of
from pipeline.storage import one_line

Row = dict[str, Any]


def blank_row(kind: str, shard_id: str, part: int) -> Row:
    """A row of `kind` with every column, so that all blocks have one schema."""
    return {
        "kind": kind,
        "shard_id": shard_id,
        "part": part,
        "samples": 0,
        "bytes": 0,  # that the samples take in the shard
        "faces": 0,
        "rejects": 0,
        "icc_ignored": 0,  # images with faces whose colour profile was not applied
        "identity_missed": 0,  # faces without an identity at their best step, where one is measured
        "reasons": "{}",  # JSON, reject reason -> count
        "shard": "",  # JSON of the shard, without the names of its files
        "summary": "",  # JSON of the written part
        "left_out": "",  # JSON of `LeftOut`: what a shard's reader passed over
        "error": "",
        "trace": "",  # of an unexpected error
        "node": "",  # address of the node that failed
        "payload": b"",  # Arrow IPC: samples, then faces, then latents
        "start": b"",  # Arrow IPC: codes that the part's faces start from
        "rejected": b"",  # Arrow IPC: reject rows
        "read_seconds": 0.0,
        "align_seconds": 0.0,
        "invert_seconds": 0.0,
        "write_seconds": 0.0,
        "inversion_seconds": 0.0,  # the method alone, of invert_seconds
    }


def pack(table: pa.Table) -> bytes:
    """An Arrow table as IPC stream bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack(content: bytes) -> pa.Table:
    """The table that `pack` wrote, on the same memory."""
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def failed_row(shard_id: str, part: int, stage: str, error: Exception) -> Row:
    """The row that reports `error` in `stage` to the driver; the part stays undone.

    With its place in the code, unless it is one that is raised on purpose.
    """
    known = isinstance(error, PipelineError)
    where = [] if known else traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({where[0].filename.rsplit('/', 1)[-1]}:{where[0].lineno})" if where else ""
    row = blank_row("failed", shard_id, part)
    row["error"] = f"{stage}: {type(error).__name__}: {one_line(error)}{place}"
    row["trace"] = "" if known else trace_of(error)
    row["node"] = node_address()
    return row


def run_stage(stage: str, work: Callable[[Row], Row], row: Row) -> Row:
    """Apply `work` to a part and time it, where it does not time itself.

    A failure becomes a `failed` row, never a lost one.
    """
    if row["kind"] != "part":
        return row
    started = time.perf_counter()
    try:
        with attempted(stage, row["shard_id"], row["part"]):
            done = work(row)
    except Exception as error:  # noqa: BLE001 - reported to the driver, which fails the run
        return failed_row(row["shard_id"], row["part"], stage, error)
    done[f"{stage}_seconds"] = done[f"{stage}_seconds"] or time.perf_counter() - started
    return done
