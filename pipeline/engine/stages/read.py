"""Stage 1, one streaming task per shard: read samples from storage, cut them into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from pipeline.engine.messages import SampleBatch, ShardEnd, ShardTask
from pipeline.engine.stages.base import Stage, StageResources
from pipeline.storage import LeftOut, Sample, Shard
from pipeline.table import Counts, InitialCodes

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
        ("fields", pa.string()),  # JSON of the columns that are copied from the input
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
    """Return the bytes of the samples in the shard; in a tar with headers and padding."""
    sizes = (len(sample.content) for sample in samples)
    if shard.kind == "tar":
        return sum(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK for size in sizes)
    return sum(sizes)


class Read(Stage):
    """Reads a shard and cuts it into parts; its settings are in the tasks."""

    name = "read"
    takes = ShardTask
    resources = StageResources("reader", cpus=0.5, is_pool=False)

    def process(self, task: ShardTask) -> Iterator[SampleBatch | ShardEnd]:
        """Yield the parts to do, then a `ShardEnd`.

        A damaged shard gives the parts before the damage, then raises an error.
        """
        total, left_out = 0, LeftOut()
        bare = replace(task.shard, names=(), sizes=())
        codes = task.initial_codes()
        samples = task.samples(codes, left_out)
        for part, count, kept in cut_parts(samples, task.part_size, task.existing):
            task.part, total = part + 1, total + count
            if part not in task.existing:
                yield _batch(bare, part, kept, codes)
        yield ShardEnd(bare, task.part, total, left_out)


def _batch(
    shard: Shard, part: int, samples: list[Sample], codes: InitialCodes | None
) -> SampleBatch:
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLES.names}
    return SampleBatch(
        shard,
        part,
        Counts(parts=1, samples=len(samples), bytes=_bytes_of(samples, shard)),
        pa.table(columns, schema=SAMPLES),
        codes.of(columns["key"]) if codes else None,
    )
