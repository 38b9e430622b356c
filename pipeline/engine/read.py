"""Stage 1, a streaming task a shard: bytes out of storage, cut into parts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.engine.rows import Row, blank_row, failed_row, pack
from pipeline.storage import Sample, Shard, read_samples

# A part closes early at this many bytes: an Arrow binary column ends at 2 GiB.
MAX_PART_BYTES = 256 << 20

SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("content", pa.large_binary()),
        ("reject", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardWork:
    """What is to be done of one shard: all parts but those in `existing`."""

    shard: Shard
    part_size: int
    existing: frozenset[int] = field(default_factory=frozenset)
    take: int | None = None  # only the first so many samples

    def to_row(self) -> Row:
        """As the row that the reader stage gets."""
        take = -1 if self.take is None else self.take
        return {
            "shard": self.shard.to_json(),
            "part_size": self.part_size,
            "existing": sorted(self.existing),
            "take": take,
        }

    @classmethod
    def from_row(cls, row: Row) -> ShardWork:
        """The inverse of `to_row`."""
        take = None if row["take"] < 0 else int(row["take"])
        existing = frozenset(int(part) for part in row["existing"])
        return cls(Shard.from_json(row["shard"]), int(row["part_size"]), existing, take)


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
        if count == part_size or (count and size + len(sample.content) > MAX_PART_BYTES):
            yield part, count, kept
            part, count, size, kept = part + 1, 0, 0, []
        count, size = count + 1, size + len(sample.content)
        if part not in existing:
            kept.append(sample)
    if count:
        yield part, count, kept


def _part_row(work: ShardWork, part: int, samples: list[Sample], seconds: float) -> Row:
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLES.names}
    row = blank_row("part", work.shard.shard_id, part)
    row["samples"] = len(samples)
    row["bytes"] = sum(len(sample.content) for sample in samples)
    row["shard"] = replace(work.shard, names=(), sizes=()).to_json()
    row["payload"] = pack(pa.table(columns, schema=SAMPLES))
    row["read_seconds"] = seconds
    return row


def read_parts(row: Row) -> Iterator[Row]:
    """The parts of one shard that are to do, then its `end` row with the totals of all parts.

    A shard that cannot be read to its end gives the parts before the damage and a `failed` row.
    """
    work = ShardWork.from_row(row)
    parts = total = 0
    started = time.perf_counter()
    try:
        samples = itertools.islice(read_samples(work.shard), work.take)
        for part, count, kept in cut_parts(samples, work.part_size, work.existing):
            parts, total = part + 1, total + count
            if part not in work.existing:
                yield _part_row(work, part, kept, time.perf_counter() - started)
                started = time.perf_counter()
    except Exception as error:  # noqa: BLE001 - reported to the driver, which fails the run
        yield failed_row(work.shard.shard_id, parts, "read", error)
        return
    end = blank_row("end", work.shard.shard_id, parts)
    end["samples"] = total
    yield end
