"""What the writer leaves of a part."""

from __future__ import annotations

import json

import pyarrow as pa

from pipeline.engine.align import REJECTS, reject_row
from pipeline.engine.plan import Plan
from pipeline.engine.read import ShardWork, read_parts
from pipeline.engine.rows import pack
from pipeline.engine.write import WriteStage
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.table import latents_table


def test_a_written_part_leaves_its_counts_and_the_etags_of_its_files(
    plan: Plan, work: ShardWork
) -> None:
    row = next(iter(read_parts(work.to_row())))
    row["payload"] = pack(latents_table([], plan.writer.spec.columns, row["shard_id"]))
    rejected = [
        reject_row(key, "", "", Rejection(RejectReason.NO_FACE, "")) for key in work.shard.names[:2]
    ]
    row["rejected"] = pack(pa.Table.from_pylist(rejected, schema=REJECTS))
    done = WriteStage(plan.writer)(row)
    part = json.loads(done["summary"])
    assert part["rejects"] == 2
    assert (done["payload"], done["rejected"]) == (b"", b"")
    listed = {name: info.etag for name, info in plan.writer.store.infos()}
    names = [f"{kind}/files-00000-00000.parquet" for kind in ("latents", "rejects")]
    assert [part["latents_etag"], part["rejects_etag"]] == [listed[name] for name in names]
