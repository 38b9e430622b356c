"""The ledger of a run: what was planned, what came out of the stages, what may be committed."""

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
from pipeline.table import INDEXED_AT_ONCE, Counts, PartRecord, RunRecord, ShardRecord

# So many parts, over so long a time, that all failed behind their reader: the next will fail too.
# A shard that cannot be read costs no GPU, and others may be whole, unless credentials expired.
GIVE_UP_PARTS, GIVE_UP_S = 20, 60.0
# A commit is a few requests to an object store, each of which takes its time.
_COMMITS_AT_ONCE = 8
_COMMITS_WAITING = 64


@dataclass
class _ShardInProgress:
    """The parts of one shard that are in the table, and what it has in all once known."""

    parts: dict[int, PartRecord]
    total: int | None = None
    samples: int = 0  # that its reader saw, once `total` is known
    left_out: LeftOut = field(default_factory=LeftOut)  # by its reader, once `total` is known
    bytes: int = 0  # that were counted for it in this run
    failed: bool = False

    @property
    def complete(self) -> bool:
        return self.total is not None and len(self.parts) == self.total

    @property
    def accounted(self) -> int:
        """Samples that its parts account for."""
        return sum(part.samples for part in self.parts.values())


class Ledger:
    """Books each message of the stages, and commits each shard when all its parts are there.

    Holds the shards that are open, not those that are done. Commits run in threads; `finish` waits
    for them.
    """

    def __init__(self, plan: Plan, outcome: RunRecord, listeners: Sequence[Listener] = ()) -> None:
        self.plan, self.outcome, self.listeners = plan, outcome, listeners
        self.open: dict[str, _ShardInProgress] = {}
        self.closed: deque[str] = deque()  # shards that are done, until the feed takes note
        self.failed_shards = 0
        self._pool = ThreadPoolExecutor(_COMMITS_AT_ONCE, thread_name_prefix="commit")
        self._commits: deque[tuple[Shard, int, Future[ShardRecord]]] = deque()
        self._records: list[ShardRecord] = []
        self._failed_in_a_row = 0
        self._first_of_row = 0.0  # when that one failed
        self.gave_up = False  # no further message is to be taken
        # Takes the address of a node on which workers died; returns what is known of why, or "".
        self.explain_deaths: Callable[[str], str] = lambda _: ""

    def take(self, message: Message) -> None:
        """Book one message; one that comes again, after a node was lost, changes nothing."""
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
            self._failed_in_a_row = 0
            shard.parts[message.part] = message.record
            shard.bytes += message.counts.bytes
            # Spares the next run the part's footer, if its shard is still open then.
            self.plan.part_index.add(message.record)
            self._count(message)
        if shard.complete and not shard.failed:
            self._close(message.shard_id, shard)
        self._settle(_COMMITS_WAITING)

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
        """The shard, which is open from its first row to its commit; None after that."""
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
        if not self._failed_in_a_row:
            self._first_of_row = now
        self._failed_in_a_row += 1
        lasted = now - self._first_of_row
        if self._failed_in_a_row < GIVE_UP_PARTS or lasted < GIVE_UP_S or self.gave_up:
            return
        self.gave_up = True
        self.outcome.fail_first(
            f"given up: {self._failed_in_a_row} parts failed one after another in {lasted:.0f} s "
            "(their errors say why); run again when that is mended"
        )

    def _close(self, shard_id: str, shard: _ShardInProgress) -> None:
        """Have a whole shard committed; where that fails it costs this shard, not the others."""
        if shard.accounted != shard.samples:
            counts = f"{shard.samples} samples in, {shard.accounted} accounted for"
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

    def _settle(self, waiting: int) -> None:
        """Take note of commits that are through, and wait till at most `waiting` are not."""
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
            # Headers, sidecars, parts that were there: what the images' bytes do not say.
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
            # Without it the next run reads these manifests; what matters fails on its own.
            with suppress(PipelineError):
                self.plan.writer.index(self._records)
            self._records.clear()

    def _count(self, done: PartDone) -> None:
        self.outcome.add_part(done.counts)
        for listener in self.listeners:
            listener.on_part(done)

    def finish(self) -> None:
        """Wait for commits, and report the shards that never became whole though none said why."""
        self._settle(0)
        self._pool.shutdown()
        if self.gave_up:
            return
        for shard_id in self.plan.states.keys() - self.open.keys():
            self._shard(shard_id)
        for shard_id, shard in sorted(self.open.items()):
            if not shard.failed:
                self.plan.part_index.forget(shard_id)
                known = "an unknown number" if shard.total is None else shard.total
                self.outcome.fail(
                    f"shard '{shard_id}': {len(shard.parts)} of {known} of parts arrived"
                )

    def abandon(self) -> None:
        """Start no more commits; those that run end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)
