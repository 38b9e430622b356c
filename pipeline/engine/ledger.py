"""Ledger of a run: takes the messages of the stages, and commits shards that are complete."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from pipeline.engine.address import in_cluster
from pipeline.engine.events import Listener
from pipeline.engine.messages import Failure, Message, PartDone, ShardEnd
from pipeline.engine.plan import Plan
from pipeline.engine.stages.base import DIED
from pipeline.errors import PipelineError, TableError
from pipeline.storage import CREDENTIALS_EXPIRED, LeftOut, Shard
from pipeline.table import Counts, PartRecord, RunRecord, ShardRecord
from pipeline.table.shard_index import INDEXED_AT_ONCE, write_index

# The run gives up when this many parts fail in a row after the reader, over at least this time.
# Failures of readers do not count: they cost no GPU time, and other shards may be readable. Expired
# credentials do.
GIVE_UP_PARTS, GIVE_UP_S = 20, 60.0
# A commit is a few requests to object storage, bound by latency.
_COMMITS_AT_ONCE = 8
_COMMITS_WAITING = 64


@dataclass
class _ShardInProgress:
    """Progress of one open shard: its written parts, and its totals once they are known."""

    parts: dict[int, PartRecord]
    total: int | None = None
    samples: int = 0  # that its reader saw, once `total` is known
    left_out: LeftOut = field(default_factory=LeftOut)  # by its reader, once `total` is known
    bytes: int = 0  # counted in this run
    failed: bool = False


class Ledger:
    """Records each message of the stages, and commits each shard when all its parts are written.

    Holds open shards only. Commits run in threads; `finish` waits for them.
    """

    def __init__(self, plan: Plan, outcome: RunRecord, listeners: Sequence[Listener] = ()) -> None:
        self.plan, self.outcome, self.listeners = plan, outcome, listeners
        self.open: dict[str, _ShardInProgress] = {}
        self.closed: deque[str] = deque()  # done shards, until the feed removes them
        self.failed_shards = 0
        self._pool = ThreadPoolExecutor(_COMMITS_AT_ONCE, thread_name_prefix="commit")
        self._commits: deque[tuple[Shard, int, Future[ShardRecord]]] = deque()
        self._records: list[ShardRecord] = []
        self._failures_in_a_row = 0
        self._first_failure_s = 0.0  # time of the first of them
        self.gave_up = False  # the caller takes no further message
        # Takes the address of a node on which workers died; returns the known reason, or "".
        self.explain_deaths: Callable[[str], str] = lambda _: ""

    def take(self, message: Message) -> None:
        """Record one message; a repeated one, after a node was lost, changes nothing."""
        shard = self._shard(message.shard_id)
        if isinstance(message, Failure):
            self._book_failure(message, shard)
            return
        if shard is None:
            return
        if isinstance(message, ShardEnd):
            shard.total, shard.samples = message.part, message.samples
            shard.left_out = message.left_out
        elif isinstance(message, PartDone) and message.record:
            if message.part in shard.parts:
                return
            self._failures_in_a_row = 0
            shard.parts[message.part] = message.record
            shard.bytes += message.counts.bytes
            # Saves the next run reading the part's footer if the shard stays open.
            self.plan.part_index.add(message.record)
            self.outcome.add_part(message.counts)
            for listener in self.listeners:
                listener.on_part(message)
        if len(shard.parts) == shard.total and not shard.failed:
            self._close(message.shard_id, shard)
        self._finish_commits(_COMMITS_WAITING)

    def _book_failure(self, failure: Failure, shard: _ShardInProgress | None) -> None:
        node = f" on node {failure.node}" if failure.node and in_cluster() else ""
        error = f"shard '{failure.shard_id}', part {failure.part}{node}: "
        error += f"{failure.stage}: {failure.error}"
        if DIED in error and (why := self.explain_deaths(failure.node)):
            error = f"{error}; {why}"
        self._fail(failure.shard_id, shard, error, failure.trace)
        if failure.stage != "read" or CREDENTIALS_EXPIRED in failure.error:
            self._count_failure()

    def _shard(self, shard_id: str) -> _ShardInProgress | None:
        """Return the open shard, from its first message to its commit; None after that."""
        if shard_id not in self.open and shard_id in self.plan.states:
            state = self.plan.states[shard_id]
            self.open[shard_id] = _ShardInProgress(dict(state.parts))
        return self.open.get(shard_id)

    def _fail(
        self, shard_id: str, shard: _ShardInProgress | None, error: str, trace: str = ""
    ) -> None:
        if shard is not None and not shard.failed:
            shard.failed = True
            self.failed_shards += 1
        self.outcome.fail(error, trace)
        for listener in self.listeners:
            listener.on_failure(shard_id, error, trace)

    def _count_failure(self) -> None:
        now = time.monotonic()
        if not self._failures_in_a_row:
            self._first_failure_s = now
        self._failures_in_a_row += 1
        lasted = now - self._first_failure_s
        if self._failures_in_a_row < GIVE_UP_PARTS or lasted < GIVE_UP_S or self.gave_up:
            return
        self.gave_up = True
        self.outcome.fail_first(
            f"given up: {self._failures_in_a_row} parts failed one after another in {lasted:.0f} s "
            "(their errors say why); fix that and run again"
        )

    def _close(self, shard_id: str, shard: _ShardInProgress) -> None:
        """Start the commit of a complete shard; a mismatch fails this shard only."""
        written = sum(part.samples for part in shard.parts.values())
        if written != shard.samples:
            counts = f"{shard.samples} samples were read, but its parts hold {written}"
            self._fail(shard_id, shard, f"shard '{shard_id}': {counts}")
            self.plan.part_index.forget(shard_id)
            return
        del self.open[shard_id]
        whole = self.plan.states.pop(shard_id).shard
        self.closed.append(shard_id)
        commit = self._pool.submit(self._commit, whole, shard)
        self._commits.append((whole, shard.bytes, commit))

    def _commit(self, shard: Shard, done: _ShardInProgress) -> ShardRecord:
        writer = self.plan.writer
        record = writer.commit_shard(shard, [*done.parts.values()], done.left_out)
        return writer.with_manifest_etag(record)

    def _finish_commits(self, waiting: int) -> None:
        """Record finished commits, and wait until at most `waiting` are unfinished."""
        while self._commits and (self._commits[0][2].done() or len(self._commits) > waiting):
            shard, counted, commit = self._commits.popleft()
            try:
                record = commit.result()
            except PipelineError as error:
                self._fail(shard.shard_id, None, f"shard '{shard.shard_id}': {error}")
                if isinstance(error, TableError):
                    self.plan.part_index.forget(shard.shard_id)
                continue
            self.plan.part_index.close(shard.shard_id)
            left_out = record.counts.left_out
            # The bytes besides this run's images: headers, sidecars, earlier parts.
            self.outcome.counts += Counts(
                shards=1,
                empty_shards=int(not record.samples),
                bytes=shard.size - counted,
                left_out=left_out,
            )
            if not record.samples:
                why = f" ({left_out.summary()})" if left_out else ""
                self.outcome.warn(f"shard '{shard.shard_id}' holds no image{why}: '{record.uri}'")
            for listener in self.listeners:
                listener.on_shard(record)
            self._note(record)

    def _note(self, record: ShardRecord) -> None:
        self._records.append(record)
        if len(self._records) >= INDEXED_AT_ONCE:
            # The index only saves the next run reading these manifests.
            with suppress(PipelineError):
                write_index(self.plan.writer.store, self._records)
            self._records.clear()

    def finish(self) -> None:
        """Wait for commits, then report shards that are incomplete without a recorded failure."""
        self._finish_commits(0)
        self._pool.shutdown()
        if self.gave_up:
            return
        for shard_id in self.plan.states.keys() - self.open.keys():
            self._shard(shard_id)
        for shard_id, shard in sorted(self.open.items()):
            if not shard.failed:
                self.plan.part_index.forget(shard_id)
                total = "an unknown number of" if shard.total is None else shard.total
                self.outcome.fail(
                    f"shard '{shard_id}': {len(shard.parts)} of {total} parts finished"
                )

    def abandon(self) -> None:
        """Start no more commits; running ones finish in their threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
