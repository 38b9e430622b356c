"""Stage 4, a pool of actors: rejects, then latents, into the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pipeline.engine.messages import LatentBatch, PartDone
from pipeline.engine.stages.base import JobStage, StageResources
from pipeline.table import TableWriter, rejects_table

if TYPE_CHECKING:
    from pipeline.choices import Device
    from pipeline.engine.resolve import Recipe


class Write(JobStage):
    """Writes the two files of a part; several threads call it."""

    name = "write"
    takes = LatentBatch
    # Packing a part takes 0.05 s of a core, a put to a bucket several times that.
    resources = StageResources("writer", cpus=0.25, parts_at_once=4)

    def __init__(self, writer: TableWriter) -> None:
        self.writer = writer

    @classmethod
    def of(cls, recipe: Recipe, writer: TableWriter, device: Device) -> Self:
        """Return the stage of a job."""
        del recipe, device
        return cls(writer)

    def process(self, batch: LatentBatch) -> PartDone:
        """Write a part; only its counts go on."""
        record = self.writer.write_tables(
            batch.shard,
            batch.part,
            samples=batch.counts.samples,
            latents=batch.latents,
            rejects=rejects_table(batch.rejects.to_pylist(), batch.shard_id),
        )
        return PartDone(batch.shard, batch.part, batch.counts, self.writer.with_etags(record))
