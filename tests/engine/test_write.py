"""What the writer leaves of a part."""

from __future__ import annotations

import pyarrow as pa

from pipeline.engine.messages import LatentBatch, SampleBatch, ShardTask
from pipeline.engine.plan import Plan
from pipeline.engine.stages import Read, Write
from pipeline.engine.stages.align import REJECTS, reject_row
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.table import latents_table


def test_a_written_part_leaves_its_counts_and_etags(plan: Plan, work: ShardTask) -> None:
    read = next(Read().process(work))
    assert isinstance(read, SampleBatch)
    latents = latents_table([], plan.writer.spec.columns, read.shard_id)
    none = Rejection(RejectReason.NO_FACE, "")
    rejects = [reject_row(key, "", "", none) for key in work.shard.names[:2]]
    rejected = pa.Table.from_pylist(rejects, schema=REJECTS)
    done = Write(plan.writer).process(LatentBatch(read.shard, 0, read.counts, latents, rejected))
    assert done.record
    assert done.record.rejects == 2
    listed = {name: info.etag for name, info in plan.writer.store.infos()}
    names = [f"{kind}/files-00000-00000.parquet" for kind in ("latents", "rejects")]
    assert [done.record.latents_etag, done.record.rejects_etag] == [listed[name] for name in names]
