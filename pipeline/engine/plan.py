"""Plan of a run: opens the table and compares the input with it, shard by shard during the listing.

Memory does not grow with the input: done shards are only counted, and a window of a few thousand
shards to do is held.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.console.progress import enter_phase
from pipeline.engine.messages import ShardTask
from pipeline.engine.preflight import check_request
from pipeline.engine.resolve import ResolvedJob, resolve_job
from pipeline.storage import (
    LeftOut,
    ReadOptions,
    Shard,
    ShardListing,
    Store,
    count_samples,
)
from pipeline.table import SPEC_NAME, TableWriter, open_for_writing
from pipeline.table.cleanup import Orphans
from pipeline.table.part_index import PartIndex
from pipeline.table.resume import ShardState
from pipeline.table.spec import check_existing

# Shards in the queue, and names of files in them: about 10 MB and 30 MB.
WINDOW_SHARDS = 4096
WINDOW_NAMES = 200_000


@dataclass
class Backlog:
    """Work to do and work done, as far as the input is compared with the table."""

    shards: int = 0  # to do
    bytes: int = 0  # of the shards to do
    done_shards: int = 0
    done_bytes: int = 0
    done_samples: int = 0
    done_parts: int = 0  # of done shards, and existing parts of the others
    complete: bool = False  # whether the listing is finished
    limited: bool = False  # whether `--limit` may leave out samples
    left_out: LeftOut = field(default_factory=LeftOut)  # files that the listing skipped
    images: int = 0  # to do, in shards whose number of images is known from the listing
    uncounted_bytes: int = 0  # of the other shards to do
    uncounted_done: int = 0  # images in existing parts of those shards
    chosen: bool = False  # whether `--where` chooses images: their number is unknown
    limit: int | None = None  # of the whole table

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready snapshot; another thread keeps changing the numbers."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        return numbers | {"left_out": self.left_out.ordered()}

    def add(self, state: ShardState, take: int | None) -> None:
        """Count a shard to do, with at most `take` of its samples."""
        self.shards += 1
        self.bytes += state.shard.size
        self.done_parts += len(state.parts)
        done = sum(summary.samples for summary in state.parts.values())
        self.done_samples += done
        if state.shard.names:  # a slice of a listing
            self.images += max(0, len(state.shard.names[:take]) - done)
        else:
            self.uncounted_bytes += state.shard.size
            self.uncounted_done += done

    def images_to_do(self, samples: int, size: int) -> int | None:
        """Return the images to do, including those done in this run; None while unknown.

        Archives are estimated from the `samples` per `size` bytes read so far.
        """
        if not self.uncounted_bytes:
            return self.images
        if not samples or not size:
            return None
        uncounted = round(samples / size * self.uncounted_bytes) - self.uncounted_done
        images = max(samples, self.images + max(0, uncounted))
        return images if self.limit is None else min(images, self.limit - self.done_samples)


class TaskQueue:
    """Single-pass iterator over the shards to do.

    It yields the largest of the next few thousand shards first, so that the run does not end with
    one shard that is a hundred times larger than the others. A smaller input is compared with the
    table completely before the first shard is yielded, and its errors are raised then; a later
    error is raised after all shards before it were yielded.
    """

    def __init__(self, source: Iterator[ShardTask]) -> None:
        self._source: Iterator[ShardTask] | None = source
        self._heap: list[tuple[int, int, ShardTask]] = []
        self._names = 0
        self._count = itertools.count()
        self._given = False
        self._error: Exception | None = None  # of the source, raised after the queued shards

    def __iter__(self) -> Iterator[ShardTask]:
        return self

    def __bool__(self) -> bool:
        self._fill()
        return bool(self._heap)

    def __next__(self) -> ShardTask:
        self._fill()
        if not self._heap:
            if self._error:
                raise self._error
            raise StopIteration
        self._given = True
        _, _, work = heapq.heappop(self._heap)
        self._names -= len(work.shard.names)
        return work

    def _fill(self) -> None:
        while self._source and len(self._heap) < WINDOW_SHARDS and self._names < WINDOW_NAMES:
            try:
                work = next(self._source, None)
            except Exception as error:
                self._source = None
                if not self._given:
                    raise
                self._error = error  # raised after the queued shards
                return
            if work is None:
                self._source = None
                return
            self._names += len(work.shard.names)
            heapq.heappush(self._heap, (-work.shard.size, next(self._count), work))


@dataclass
class Plan:
    """Plan of a run: tasks, state of each shard, backlog, writer."""

    job: ResolvedJob
    writer: TableWriter
    options: ReadOptions = field(default_factory=ReadOptions)
    tasks: TaskQueue = field(default_factory=lambda: TaskQueue(iter(())))
    states: dict[str, ShardState] = field(default_factory=dict)  # of the tasks, until committed
    backlog: Backlog = field(default_factory=Backlog)
    error: Exception | None = None  # that ended `tasks`
    part_index: PartIndex = field(init=False)
    orphans: Orphans = field(init=False)

    def __post_init__(self) -> None:
        self.part_index = PartIndex(self.writer.store, read_only=self.writer.read_only)
        self.orphans = Orphans(self.writer.store)


def take_first(
    states: Iterable[ShardState],
    limit: int | None,
    part_size: int,
    backlog: Backlog,
    options: ReadOptions | None = None,
) -> Iterator[tuple[ShardState, int | None]]:
    """Yield (state, maximum samples to take) of the shards with the first `limit` samples.

    None as the maximum means all. Sets `backlog.limited` if the input may hold more samples.

    A damaged shard counts with the samples before its damage, so that it alone fails and the
    shards after it are used as if it ended there.
    """
    left = limit
    for state in states:
        if left is None:
            yield state, None
            continue
        if left == 0:
            break
        if state.committed:
            taken = min(left, state.committed.samples)
            yield state, taken
        else:
            taken = count_samples(state.shard, left, options)
            # `left` and not `taken`: the reader must reach the shard's end, or its damage.
            yield _without_cut_parts(state, taken, part_size), left
        left -= taken
    backlog.limited = left == 0


def _without_cut_parts(state: ShardState, taken: int, part_size: int) -> ShardState:
    """Return `state` without the parts that another limit cut short; those become stale.

    The shards before this one decide how much of it is taken. A part is valid if it is full and
    ends within the `taken` samples, or if it ends with the last of them.
    """
    dropped: list[int] = []
    contiguous = end = 0
    for number, summary in sorted(state.parts.items()):
        follows = number == contiguous  # on an unbroken row of parts
        contiguous += follows
        # After a gap this is the latest possible end.
        end = (end if follows else number * part_size) + summary.samples
        full = summary.samples == part_size and end <= taken
        if not full and not (follows and end == taken):
            dropped.append(number)
    return state.without(dropped) if dropped else state


def make_plan(
    config: JobConfig, *, dry_run: bool = False, shards: ShardListing | None = None
) -> Plan:
    """Open the table and prepare the comparison of the input with it.

    Raises a `RequestError` for a wrong request. Writes `_table.json` if the table is new, and
    nothing with `dry_run`. Iterating `Plan.tasks` lists the input; `shards` is its listing, if
    `check_request` has already started it.
    """
    # A missing input, or one without images, is refused before the table is created.
    shards = check_request(config) if shards is None else shards
    options = replace(config.read_options, keep_columns=shards.kept)
    enter_phase("loading the model")
    job = resolve_job(config, shards.kept)
    if dry_run:
        store = Store(config.output)
        if store.exists(SPEC_NAME):
            check_existing(store, job.spec)
        writer = TableWriter(config.output, job.spec, part_size=job.part_size, read_only=True)
    else:
        writer = open_for_writing(config.output, job.spec, part_size=job.part_size)
    backlog = Backlog(left_out=shards.left_out, chosen=bool(config.where), limit=config.limit)
    plan = Plan(job, writer, options, backlog=backlog)
    plan.tasks = TaskQueue(_compare(plan, shards, config))
    return plan


def _compare(plan: Plan, shards: Iterator[Shard], config: JobConfig) -> Iterator[ShardTask]:
    """Yield the task of each shard to do, after deleting its stale files."""
    backlog, part_size = plan.backlog, plan.writer.part_size
    orphans = None if plan.writer.read_only else plan.orphans
    states = plan.writer.states(shards, plan.part_index, orphans)
    for state, take in take_first(states, config.limit, part_size, backlog, plan.options):
        plan.orphans.add_input(state.shard)
        if state.committed:
            backlog.done_shards += 1
            backlog.done_bytes += state.shard.size
            backlog.done_samples += state.committed.samples
            backlog.done_parts += state.committed.parts
            continue
        if not plan.writer.read_only:
            plan.writer.clear(state)
        backlog.add(state, take)
        plan.states[state.shard.shard_id] = state
        yield ShardTask(
            shard=state.shard,
            part_size=part_size,
            existing=frozenset(state.parts),
            take=take,
            init=config.init,
            where=config.where,
            options=plan.options,
        )
    backlog.complete = True
