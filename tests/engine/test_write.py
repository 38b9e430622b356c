"""Check the result of the write stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.messages import LatentBatch, SampleBatch, ShardTask
from pipeline.engine.plan import Plan
from pipeline.engine.stages import Read, Write
from pipeline.engine.stages.align import reject_row
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.table.forgetting.forgotten import ForgetList, Forgotten, Source


def test_a_written_part_leaves_its_counts_and_etags(plan: Plan, work: ShardTask) -> None:
    read = next(Read().process(work))
    assert isinstance(read, SampleBatch)
    none = Rejection(RejectReason.NO_FACE, "")
    rejects = [reject_row(key, "", "", none) for key in work.shard.names[:2]]
    done = Write(plan.writer).process(LatentBatch(read.shard, 0, read.counts, [], rejects))
    assert done.record
    assert done.record.rejects == 2
    listed = {name: info.etag for name, info in plan.writer.store.infos()}
    names = [f"{kind}/files-00000-00000.parquet" for kind in ("latents", "rejects")]
    assert [done.record.latents_etag, done.record.rejects_etag] == [listed[name] for name in names]


def test_forgotten_images_are_counted_as_rejects(plan: Plan, work: ShardTask) -> None:
    read = next(Read().process(work))
    assert isinstance(read, SampleBatch)
    rows = read.samples.select(["key", "uri"]).to_pylist()
    none = Rejection(RejectReason.NO_FACE, "")
    rejects = [reject_row(row["key"], row["uri"], "", none) for row in rows]
    batch = LatentBatch(
        read.shard,
        0,
        replace(read.counts, rejects=len(rows), reasons=Counter(no_face=len(rows))),
        [],
        rejects,
    )
    plan.writer.forgotten = Forgotten([ForgetList.of([Source("", rows[0]["uri"])], "")])

    done = Write(plan.writer).process(batch)

    assert done.counts.samples == done.counts.rejects == len(rows)
    assert done.counts.reasons == {"forgotten": 1, "no_face": len(rows) - 1}
    stored = plan.writer.store.get("rejects/files-00000-00000.parquet")
    keys = pq.read_table(pa.BufferReader(stored))["key"].to_pylist()
    assert keys == [*(row["key"] for row in rows[1:]), "forgotten:00000-0"]
