"""What is to be done: the table opened, the input compared with it, the shards' states."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.config import JobConfig
from pipeline.engine.read import ShardWork
from pipeline.engine.recipe import Recipe, make_recipe
from pipeline.storage import Shard, Store, list_shards, read_samples
from pipeline.table import (
    DESCRIPTION_NAME,
    ShardState,
    TableWriter,
    check_same,
    open_for_writing,
    read_description,
)


@dataclass(frozen=True)
class Plan:
    """The shards that are to do, and what is done already."""

    recipe: Recipe
    writer: TableWriter
    works: list[ShardWork]
    states: dict[str, ShardState]  # of the shards to do
    done_shards: int
    done_samples: int
    done_parts: int  # of shards that are done, and those that the others have

    @property
    def bytes_to_do(self) -> int:
        """Size of the input that is to be read, in bytes."""
        return sum(work.shard.size for work in self.works)


def count_samples(shard: Shard, at_most: int | None = None) -> int:
    """Number of samples in `shard`, counted by reading it unless it is a slice of a folder."""
    if shard.kind == "folder":
        return len(shard.names) if at_most is None else min(len(shard.names), at_most)
    return sum(1 for _ in itertools.islice(read_samples(shard), at_most))


def take_first(
    states: Iterable[ShardState], limit: int | None
) -> Iterator[tuple[ShardState, int | None]]:
    """The states that hold the first `limit` samples, with how many to take (None: all)."""
    left = limit
    for state in states:
        if left is None:
            yield state, None
            continue
        if left == 0:
            return
        count = state.manifest.samples if state.manifest else count_samples(state.shard, left)
        taken = min(left, count)
        left -= taken
        yield state, taken


def make_plan(config: JobConfig, *, dry_run: bool = False) -> Plan:
    """Open the table, compare the input with it, and list what is to do.

    Raises a `RequestError` for whatever is wrong with the request, before any work. Writes
    `_table.json` if the table is new, and nothing with `dry_run`.
    """
    recipe = make_recipe(config)
    shards = list_shards(config.input, files_per_shard=config.files_per_shard)
    first = next(shards)  # an input that is not there is refused before the table is made
    shards = itertools.chain([first], shards)
    if dry_run:
        store = Store(config.output)
        if store.exists(DESCRIPTION_NAME):
            check_same(config.output, read_description(store), recipe.description)
        writer = TableWriter(config.output, recipe.description, part_size=config.part_size)
    else:
        writer = open_for_writing(config.output, recipe.description, part_size=config.part_size)
    works, states = [], {}
    done_shards = done_samples = done_parts = 0
    for state, take in take_first(writer.states(shards), config.limit):
        if state.manifest:
            done_shards += 1
            done_samples += state.manifest.samples
            done_parts += len(state.manifest.parts)
            continue
        done_parts += len(state.parts)
        done_samples += sum(summary.samples for summary in state.parts.values())
        works.append(ShardWork(state.shard, config.part_size, frozenset(state.parts), take))
        states[state.shard.shard_id] = state
    return Plan(recipe, writer, works, states, done_shards, done_samples, done_parts)
