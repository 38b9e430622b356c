"""Stage 1, one streaming task per shard: bytes out of storage, cut into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from pipeline.engine.messages import SampleBatch, ShardEnd, ShardTask
from pipeline.engine.stages.base import JobStage, StageResources
from pipeline.storage import LeftOut, Sample, Shard
from pipeline.table import Counts, InitialCodes

if TYPE_CHECKING:
    from pipeline.choices import Device
    from pipeline.engine.resolve import Recipe
    from pipeline.table import TableWriter

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


class Read(JobStage):
    """Reads a shard and cuts it into parts."""

    name = "read"
    takes = ShardTask
    resources = StageResources("reader", cpus=0.5, is_pool=False)

    @classmethod
    def of(cls, recipe: Recipe, writer: TableWriter, device: Device) -> Self:
        """Return the stage; what is read stands in the tasks."""
        del recipe, writer, device
        return cls()

    def process(self, task: ShardTask) -> Iterator[SampleBatch | ShardEnd]:
        """Yield the parts to do, then the totals of all parts and what the reader passed over.

        A shard that cannot be read to its end gives the parts before the damage, then an error.
        """
        total, left_out = 0, LeftOut()
        bare = replace(task.shard, names=(), sizes=())
        starts = task.starts()
        samples = task.samples(starts, left_out)
        for part, count, kept in cut_parts(samples, task.part_size, task.existing):
            task.part, total = part + 1, total + count
            if part not in task.existing:
                yield _batch(bare, part, kept, starts)
        yield ShardEnd(bare, task.part, total, left_out)


def _batch(
    shard: Shard, part: int, samples: list[Sample], starts: InitialCodes | None
) -> SampleBatch:
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLES.names}
    return SampleBatch(
        shard,
        part,
        Counts(parts=1, samples=len(samples), bytes=_bytes_of(samples, shard)),
        pa.table(columns, schema=SAMPLES),
        starts.of(columns["key"]) if starts else None,
    )
