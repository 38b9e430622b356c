"""Stage 1, a streaming task a shard: bytes out of storage, cut into parts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.engine.attempts import attempted
from pipeline.engine.node_registry import wait_for_verdict
from pipeline.engine.rows import Row, blank_row, failed_row, pack
from pipeline.storage import LeftOut, ReadOptions, Sample, Shard, read_samples
from pipeline.table import InitialCodes

# A part closes early at this many bytes: an Arrow binary column ends at 2 GiB.
MAX_PART_BYTES = 256 << 20
_TAR_BLOCK = 512

SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("content", pa.large_binary()),
        ("reject", pa.string()),
        ("detail", pa.string()),
        ("fields", pa.string()),  # JSON of what is carried over from the input
    ]
)


@dataclass(frozen=True)
class ShardWork:
    """What is to be done of one shard: all parts but those in `existing`."""

    shard: Shard
    part_size: int
    existing: frozenset[int] = field(default_factory=frozenset)
    take: int | None = None  # only the first so many samples
    init: str | None = None  # the table whose codes the faces start from
    where: str | None = None  # which of its faces; their samples alone are read
    options: ReadOptions = field(default_factory=ReadOptions)

    def to_row(self) -> Row:
        """As the row that the reader stage gets."""
        take = -1 if self.take is None else self.take
        return {
            "shard": self.shard.to_json(),
            "part_size": self.part_size,
            "existing": sorted(self.existing),
            "take": take,
            "init": self.init or "",
            "where": self.where or "",
            "options": self.options.to_json(),
        }

    @classmethod
    def from_row(cls, row: Row) -> ShardWork:
        """The inverse of `to_row`."""
        take = None if row["take"] < 0 else int(row["take"])
        existing = frozenset(int(part) for part in row["existing"])
        return cls(
            Shard.from_json(row["shard"]),
            int(row["part_size"]),
            existing,
            take,
            row["init"] or None,
            row["where"] or None,
            ReadOptions.from_json(row["options"]),
        )

    def starts(self) -> InitialCodes | None:
        """The codes that the shard's faces start from; None without a table of them."""
        return InitialCodes(self.init, self.shard, self.where) if self.init else None

    def samples(
        self, starts: InitialCodes | None, left_out: LeftOut | None = None
    ) -> Iterator[Sample]:
        """The shard's samples; with a condition those that have a chosen face.

        What is passed over on the way to them is counted in `left_out`.
        """
        keys = starts.keys if starts and self.where else None
        return itertools.islice(read_samples(self.shard, keys, self.options, left_out), self.take)


def cut_parts(
    samples: Iterator[Sample], part_size: int, existing: frozenset[int]
) -> Iterator[tuple[int, int, list[Sample]]]:
    """Yield (part, number of samples, samples) for consecutive runs of `samples`.

    A part ends at `part_size` samples or 256 MiB: a function of the shard alone. The samples of
    the parts in `existing` are counted but not kept.
    """
    part, count, size = 0, 0, 0
    kept: list[Sample] = []
    for sample in samples:
        length = len(sample.content) + len(sample.fields)
        if count == part_size or (count and size + length > MAX_PART_BYTES):
            yield part, count, kept
            part, count, size, kept = part + 1, 0, 0, []
        count, size = count + 1, size + length
        if part not in existing:
            kept.append(sample)
    if count:
        yield part, count, kept


def _bytes_of(samples: list[Sample], shard: Shard) -> int:
    """What the samples take in the shard: in a tar, whole blocks and a header each."""
    sizes = (len(sample.content) for sample in samples)
    if shard.kind == "tar":
        return sum(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK for size in sizes)
    return sum(sizes)


def _part_row(
    work: ShardWork,
    part: int,
    samples: list[Sample],
    starts: InitialCodes | None,
    seconds: float,
) -> Row:
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLES.names}
    row = blank_row("part", work.shard.shard_id, part)
    row["samples"] = len(samples)
    row["bytes"] = _bytes_of(samples, work.shard)
    row["shard"] = replace(work.shard, names=(), sizes=()).to_json()
    row["payload"] = pack(pa.table(columns, schema=SAMPLES))
    if starts:
        row["start"] = pack(starts.of(columns["key"]))
    row["read_seconds"] = seconds
    return row


def read_parts(row: Row) -> Iterator[Row]:
    """The parts of one shard that are to do, then its `end` row with the totals of all parts, and
    with what its reader passed over.

    A shard that cannot be read to its end gives the parts before the damage and a `failed` row.
    """
    wait_for_verdict()
    work = ShardWork.from_row(row)
    parts = total = 0
    left_out = LeftOut()
    started = time.perf_counter()
    try:
        with attempted("read", work.shard.shard_id, 0):
            starts = work.starts()
            samples = work.samples(starts, left_out)
            for part, count, kept in cut_parts(samples, work.part_size, work.existing):
                parts, total = part + 1, total + count
                if part not in work.existing:
                    yield _part_row(work, part, kept, starts, time.perf_counter() - started)
                    started = time.perf_counter()
    except Exception as error:  # noqa: BLE001 - reported to the driver, which fails the run
        yield failed_row(work.shard.shard_id, parts, "read", error)
        return
    end = blank_row("end", work.shard.shard_id, parts)
    end["samples"] = total
    end["left_out"] = left_out.to_text()
    yield end
