"""What is to be done: the table opened, the input compared with it, shard by shard as it is listed.

Nothing here grows with the images of the input: of shards that are done only numbers are kept, and
of those to do a window of a few thousand.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.messages import ShardTask
from pipeline.engine.preflight import check_request
from pipeline.engine.progress import doing
from pipeline.engine.resolve import Recipe, make_recipe
from pipeline.storage import (
    LeftOut,
    ReadOptions,
    Shard,
    ShardListing,
    Store,
    count_samples,
)
from pipeline.table import (
    SPEC_NAME,
    Orphans,
    PartIndex,
    ShardState,
    TableWriter,
    check_existing,
    open_for_writing,
)

# Shards that wait for their turn, and names of files in them: about 10 MB and 30 MB.
WINDOW_SHARDS = 4096
WINDOW_NAMES = 200_000


@dataclass
class Found:
    """What comparing the input with the table has found so far."""

    shards: int = 0  # to do
    bytes: int = 0  # of these
    done_shards: int = 0
    done_bytes: int = 0
    done_samples: int = 0
    done_parts: int = 0  # of shards that are done, and those that the others have
    complete: bool = False  # whether all is listed that is to be in the table
    limited: bool = False  # whether the input may have more, which `--limit` leaves out
    left_out: LeftOut = field(default_factory=LeftOut)  # what the listing passed over
    images: int = 0  # to do, of shards whose number of images is known from the listing
    uncounted_bytes: int = 0  # of the other shards to do
    uncounted_done: int = 0  # images of parts that these have
    chosen: bool = False  # whether `--where` chooses images, whose number nobody knows
    limit: int | None = None  # of the whole table

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, at one time: the listing goes on in another thread."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return found | {"left_out": self.left_out.ordered()}

    def add(self, state: ShardState, take: int | None) -> None:
        """Count a shard that is to do, of which at most `take` samples are."""
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
        """Images that are to do, those that are done since among them; None while unknown.

        Of archives estimated by how many `samples` the `size` bytes that were read hold.
        """
        if not self.uncounted_bytes:
            return self.images
        if not samples or not size:
            return None
        uncounted = round(samples / size * self.uncounted_bytes) - self.uncounted_done
        images = max(samples, self.images + max(0, uncounted))
        return images if self.limit is None else min(images, self.limit - self.done_samples)


class TaskQueue:
    """The shards to do, as an iterator that is used up.

    Of the next few thousand the largest comes first, so that a shard that is a hundred times the
    others is not what everything waits for in the end. An input of fewer is compared with the
    table to its end before the first shard is given out, and what is wrong with it is raised then;
    an error that comes later is raised when all that was found before it is given out.
    """

    def __init__(self, source: Iterator[ShardTask]) -> None:
        self._source: Iterator[ShardTask] | None = source
        self._heap: list[tuple[int, int, ShardTask]] = []
        self._names = 0
        self._count = itertools.count()
        self._given = False
        self._error: Exception | None = None  # that ended the source while shards were waiting

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
                self._error = error  # raised behind the shards that were found before
                return
            if work is None:
                self._source = None
                return
            self._names += len(work.shard.names)
            heapq.heappush(self._heap, (-work.shard.size, next(self._count), work))


@dataclass
class Plan:
    """The shards that are to do, how far each is, and what is done already."""

    recipe: Recipe
    writer: TableWriter
    options: ReadOptions = field(default_factory=ReadOptions)
    tasks: TaskQueue = field(default_factory=lambda: TaskQueue(iter(())))
    states: dict[str, ShardState] = field(default_factory=dict)  # of the tasks, until committed
    found: Found = field(default_factory=Found)
    error: Exception | None = None  # what ended `tasks`
    part_index: PartIndex = field(init=False)
    orphans: Orphans = field(init=False)

    def __post_init__(self) -> None:
        self.part_index = PartIndex(self.writer.store, read_only=self.writer.read_only)
        self.orphans = Orphans(self.writer.store)


def take_first(
    states: Iterable[ShardState],
    limit: int | None,
    part_size: int,
    found: Found,
    options: ReadOptions | None = None,
) -> Iterator[tuple[ShardState, int | None]]:
    """The states that hold the first `limit` samples, with how many to take at most (None: all).

    `found.limited` is set where the input may hold more samples than that.

    A shard that is damaged is one of them, so that it fails alone, with the samples before the
    damage; what lies behind it is taken as if it held no more.
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
            # Not `taken`: the reader has to come upon the shard's end, or upon its damage.
            yield _without_cut_parts(state, taken, part_size), left
        left -= taken
    found.limited = left == 0


def _without_cut_parts(state: ShardState, taken: int, part_size: int) -> ShardState:
    """`state` without the parts that end where another limit cut the shard, which become stale.

    How much is taken of a shard changes with the shards before it. A part is sure to be right if it
    is full and ends within the samples that are `taken`, or if it ends with the last of them.
    """
    dropped: list[int] = []
    contiguous = end = 0
    for number, summary in sorted(state.parts.items()):
        known = number == contiguous
        contiguous += known
        # Where parts before it are not known it ends there at the latest.
        end = (end if known else number * part_size) + summary.samples
        full = summary.samples == part_size and end <= taken
        if not full and not (known and end == taken):
            dropped.append(number)
    return state.without(dropped) if dropped else state


def make_plan(
    config: JobConfig, *, dry_run: bool = False, shards: ShardListing | None = None
) -> Plan:
    """Open the table and get ready to compare the input with it.

    Raises a `RequestError` for whatever is wrong with the request. Writes `_table.json` if the
    table is new, and nothing with `dry_run`. The input is listed as `Plan.tasks` is used; `shards`
    is its listing where `check_request` has begun it.
    """
    # An input that is not there, or not of images, is refused before the table is made.
    shards = check_request(config) if shards is None else shards
    options = replace(config.read_options, keep_columns=shards.kept)
    doing("loading the model")
    recipe = make_recipe(config, shards.kept)
    if dry_run:
        store = Store(config.output)
        if store.exists(SPEC_NAME):
            check_existing(store, recipe.spec)
        writer = TableWriter(config.output, recipe.spec, part_size=config.part_size, read_only=True)
    else:
        writer = open_for_writing(config.output, recipe.spec, part_size=config.part_size)
    found = Found(left_out=shards.left_out, chosen=bool(config.where), limit=config.limit)
    plan = Plan(recipe, writer, options, found=found)
    plan.tasks = TaskQueue(_compare(plan, shards, config))
    return plan


def _compare(plan: Plan, shards: Iterator[Shard], config: JobConfig) -> Iterator[ShardTask]:
    """What is to do of each shard; files that another state of it left are removed first."""
    found = plan.found
    orphans = None if plan.writer.read_only else plan.orphans
    states = plan.writer.states(shards, plan.part_index, orphans)
    for state, take in take_first(states, config.limit, config.part_size, found, plan.options):
        plan.orphans.is_input(state.shard)
        if state.committed:
            found.done_shards += 1
            found.done_bytes += state.shard.size
            found.done_samples += state.committed.samples
            found.done_parts += state.committed.parts
            continue
        if not plan.writer.read_only:
            plan.writer.clear(state)
        found.add(state, take)
        plan.states[state.shard.shard_id] = state
        yield ShardTask(
            shard=state.shard,
            part_size=config.part_size,
            existing=frozenset(state.parts),
            take=take,
            init=config.init,
            where=config.where,
            options=plan.options,
        )
    found.complete = True
