"""Stage 4, a pool of actors: write rejects, then latents, to the table."""

from __future__ import annotations

from dataclasses import replace

from pipeline.engine.messages import LatentBatch, PartDone
from pipeline.engine.stages.base import Stage, StageResources
from pipeline.table import TableWriter


class Write(Stage):
    """Writes the two files of a part; thread-safe."""

    name = "write"
    takes = LatentBatch
    # Encoding a part takes 0.05 s of a core, an upload to a bucket several times that.
    resources = StageResources("writer", cpus=0.25, parts_at_once=4)

    def __init__(self, writer: TableWriter) -> None:
        self.writer = writer

    def process(self, batch: LatentBatch) -> PartDone:
        """Write a part; only its counts are passed on."""
        record = self.writer.write_part(
            batch.shard,
            batch.part,
            samples=batch.counts.samples,
            latents=batch.latents,
            rejects=batch.rejects,
        )
        counts = batch.counts
        if self.writer.forgotten:  # the table may have fewer faces than were found
            reasons = record.stats.counts.reasons
            counts = replace(counts, faces=record.faces, rejects=record.rejects, reasons=reasons)
        return PartDone(batch.shard, batch.part, counts, self.writer.with_etags(record))
