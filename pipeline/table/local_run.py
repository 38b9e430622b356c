"""Record of a run that writes a table in this process, without the engine: an import, an edit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress

from pipeline.errors import PipelineError, RequestError
from pipeline.table.forgetting.forgotten import check_finished
from pipeline.table.parts import PartRecord
from pipeline.table.resume import ShardState
from pipeline.table.runs import RunFile, RunRecord
from pipeline.table.stats import Counts
from pipeline.table.writer import TableWriter


class LocalRun:
    """Record of one run in `_runs/`, written at its start, every minute and at its end.

    Use as a context manager. `file.facts` are what else the record has; `began` is the time of the
    start by the storage's clock.
    """

    def __init__(self, writer: TableWriter, record: RunRecord) -> None:
        self.record = record
        self.file = RunFile(writer.store, record, writer.spec.to_dict())
        self.began = math.inf
        self._to_do, self._done, self._listed = Counts(), Counts(), False

    def __enter__(self) -> LocalRun:
        self.began = self.file.store.info(self._write(None)).modified
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if error is None:
            self._write(0)
            return
        with suppress(PipelineError):  # the first error is what the user must hear about
            self.record.fail(str(error) or type(error).__name__)
            self._write(2 if isinstance(error, RequestError) else 1)

    def planned(self, states: Iterable[ShardState]) -> None:
        """Write the counts of planned and of committed work.

        Raises `RequestError` if images are being erased from the table.
        """
        # A forget that began after the writer was opened finds the record that is already written.
        check_finished(self.file.store)
        for state in states:
            size = Counts(bytes=state.shard.size)
            if state.committed:
                self._done += state.committed + size
            else:
                self._to_do += size + Counts(shards=1)
                self._done = sum((part.counts for part in state.parts.values()), self._done)
        self._listed = True
        self._write(None)

    def add(self, part: PartRecord, icc_ignored: int) -> None:
        """Count a part that was written; write the counts, once a minute."""
        self.record.add_part(part.counts + Counts(icc_ignored=icc_ignored))
        if self.file.is_due:
            with suppress(PipelineError):  # the next minute's, or the end's, will do
                self._write(None)

    def _write(self, exit_code: int | None) -> str:
        counts = {
            "shards": self._to_do.shards,
            "bytes": self._to_do.bytes,
            "done_shards": self._done.shards,
            "done_bytes": self._done.bytes,
            "done_samples": self._done.samples,
            "done_parts": self._done.parts,
            "complete": self._listed,
            "left_out": self.record.listed.ordered(),
        }
        return self.file.write(counts, exit_code)
