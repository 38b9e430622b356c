"""Stage 4, an actor: rejects, then latents, into the table."""

from __future__ import annotations

import json

from pipeline.engine.node_registry import wait_for_verdict
from pipeline.engine.rows import Row, run_stage, unpack
from pipeline.storage import Shard
from pipeline.table import TableWriter, rejects_table


class WriteStage:
    """Puts a part's two files and leaves of the part a row of counts; several threads call it."""

    def __init__(self, writer: TableWriter) -> None:
        wait_for_verdict()
        self.writer = writer

    def __call__(self, row: Row) -> Row:
        done = run_stage("write", self._work, row)
        done["payload"] = done["rejected"] = b""
        return done

    def _work(self, row: Row) -> Row:
        shard = Shard.from_json(row["shard"])
        part = self.writer.write_tables(
            shard,
            row["part"],
            samples=row["samples"],
            latents=unpack(row["payload"]),
            rejects=rejects_table(unpack(row["rejected"]).to_pylist(), row["shard_id"]),
        )
        row["summary"] = json.dumps(self.writer.with_etags(part).to_dict())
        return row
