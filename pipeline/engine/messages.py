"""Messages between the stages, and their encoding as Ray rows.

    ShardTask -> [read] SampleBatch -> [align] FaceBatch -> [invert] LatentBatch -> [write] PartDone

A reader ends each shard with a `ShardEnd`. A stage that fails sends a `Failure` instead of its
part. Both pass through the later stages unchanged.

Ray merges, splits and drops blocks of many rows, so each message is one row. Its Arrow tables are
columns of IPC bytes, which Ray moves as they are; everything else is one pickled column.
"""

from __future__ import annotations

import itertools
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.redaction import trace_of
from pipeline.storage import LeftOut, ReadOptions, Sample, Shard, one_line, read_samples
from pipeline.table import Counts, InitialCodes, PartRecord

Row = dict[str, Any]

_TABLES = ("samples", "faces", "initial_codes", "rejects")


@dataclass
class Message:
    """Base of all messages; only the shard of a task lists its files."""

    shard: Shard
    part: int

    @property
    def shard_id(self) -> str:
        """Return the id of the shard."""
        return self.shard.shard_id


@dataclass
class ShardTask(Message):
    """Task to process one shard: all parts except those in `existing`."""

    part_size: int
    existing: frozenset[int] = frozenset()
    take: int | None = None  # number of first samples to process; None: all
    init: str | None = None  # table with the initial codes of the faces
    where: str | None = None  # condition on its faces; only their samples are read
    options: ReadOptions = field(default_factory=ReadOptions)
    part: int = field(default=0, kw_only=True)  # current part of its reader

    def initial_codes(self) -> InitialCodes | None:
        """Return the initial codes of the shard's faces; None without a table of them."""
        return InitialCodes(self.init, self.shard, self.where) if self.init else None

    def samples(
        self, codes: InitialCodes | None, left_out: LeftOut | None = None
    ) -> Iterator[Sample]:
        """Yield the shard's samples; with a condition those that have a chosen face.

        Files that are skipped are counted in `left_out`.
        """
        keys = codes.keys if codes and self.where else None
        return itertools.islice(read_samples(self.shard, keys, self.options, left_out), self.take)


@dataclass
class Batch(Message):
    """Part of a shard between two stages."""

    counts: Counts  # filled in from stage to stage


@dataclass
class SampleBatch(Batch):
    """Samples of a part, as read."""

    samples: pa.Table  # of stages.read.SAMPLES
    initial_codes: pa.Table | None = None  # None if the job has none


@dataclass
class FaceBatch(Batch):
    """Aligned faces of a part, and its rejects."""

    faces: pa.Table  # of stages.align.FACES
    rejects: pa.Table  # of stages.align.REJECTS
    initial_codes: pa.Table | None = None


@dataclass
class LatentBatch(Batch):
    """Rows of a part for the table, as `TableWriter.write_part` takes them.

    The writer makes Arrow tables of them: that holds Python's interpreter, which an inverter needs
    to keep a GPU busy.
    """

    latents: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


@dataclass
class PartDone(Batch):
    """Written part."""

    record: PartRecord | None = None  # of its files in the table; None for crops


@dataclass
class ShardEnd(Message):
    """Totals of a shard that was read to its end; `part` is the number of its parts."""

    samples: int
    left_out: LeftOut = field(default_factory=LeftOut)  # files that its reader skipped


@dataclass
class Failure(Message):
    """An error in a stage; its part is not in the table."""

    stage: str
    error: str
    trace: str = ""  # of an unexpected error
    node: str = ""  # address of the node that failed

    @classmethod
    def of(cls, message: Message, stage: str, error: Exception, node: str = "") -> Failure:
        """Create the failure for an `error` of `stage` on `message`.

        An unexpected error names its place in the code.
        """
        expected = isinstance(error, PipelineError)
        frames = [] if expected else traceback.extract_tb(error.__traceback__)[-1:]
        place = f" ({frames[0].filename.rsplit('/', 1)[-1]}:{frames[0].lineno})" if frames else ""
        text = f"{type(error).__name__}: {one_line(error)}{place}"
        trace = "" if expected else trace_of(error)
        return cls(message.shard, message.part, stage, text, trace, node)


_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (ShardTask, SampleBatch, FaceBatch, LatentBatch, PartDone, ShardEnd, Failure)
}


def kind_of(row: Row) -> type[Message]:
    """Return the type of the message in `row`, without decoding it."""
    return _KINDS[row["kind"]]


def to_row(message: Message) -> Row:
    """Encode `message` as a Ray row; all messages have the same columns."""
    values = vars(message)
    tables = {name: value for name, value in values.items() if isinstance(value, pa.Table)}
    facts = {name: value for name, value in values.items() if name not in tables}
    row: Row = {"kind": type(message).__name__, "facts": pickle.dumps(facts)}
    for name in _TABLES:
        row[name] = _pack(tables[name]) if name in tables else b""
    return row


def from_row(row: Row) -> Message:
    """Decode the message in `row`; its tables share the row's memory."""
    tables = {name: _unpack(row[name]) for name in _TABLES if row[name]}
    return _KINDS[row["kind"]](**pickle.loads(row["facts"]), **tables)


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()
