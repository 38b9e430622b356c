"""Streaming source of the pipeline: emits the plan's shards one by one, bounds open shards.

`ray.data.from_items` takes a list: it would need the complete listing in memory first. This source
is built on Ray Data's internal operators.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext
from ray.data._internal.execution.interfaces import BlockEntry, RefBundle
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.logical.interfaces import LogicalOperator, LogicalPlan, SourceOperator
from ray.data._internal.planner.planner import Planner
from ray.data._internal.stats import DatasetStats
from ray.data.block import BlockMetadata

from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import ShardTask, to_row

# Shards between source and commit: with ten images each they still keep 500 GPUs busy.
OPEN_SHARDS = 2048
# Parts between reader and table: each takes 40 KB in the driver, and Ray Data bounds only the bytes
# of blocks, which are few if images are small.
PARTS_AHEAD, PARTS_AHEAD_PER_WORKER = 1024, 8
# Shards that may be open however many parts they have, so that a run cannot stall; and shards that
# may wait for a reader.
_MIN_OPEN_SHARDS, _MAX_UNREAD_SHARDS = 32, 64
_READY = 64
_WAIT_S = 0.05


class Feed:
    """Pulls tasks from the plan in a thread, so that Ray Data's loop never waits for a listing."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._ready: deque[ShardTask] = deque()
        self._change = threading.Condition()
        self._ended = self._stopped = False
        self.emitted = 0  # shards
        # Ray repeats a shard from its row if a node with its parts is lost.
        self._rows: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._pull, name="plan", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _pull(self) -> None:
        try:
            for task in self.ledger.plan.tasks:
                with self._change:
                    self._ready.append(task)
                    self._change.notify_all()
                    while len(self._ready) >= _READY and not self._stopped:
                        self._change.wait()
                    if self._stopped:
                        return
        except Exception as error:  # noqa: BLE001 - raised by the run after all emitted shards are done
            self.ledger.plan.error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def stop(self) -> None:
        """Pull no more tasks; emitted ones continue."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    @property
    def open_shards(self) -> int:
        """Return how many emitted shards are neither committed nor failed."""
        return len(self._rows) - self.ledger.failed_shards

    @property
    def ended(self) -> bool:
        """Return whether no task is left to emit."""
        return (self._ended or self._stopped) and not self._ready

    def ready(self) -> bool:
        """Return whether a shard can be emitted; waits briefly if nothing else is open."""
        while self.ledger.closed:
            self._rows.pop(self.ledger.closed.popleft(), None)
        if self.open_shards >= OPEN_SHARDS:
            return False
        if not self._ready and not self._ended and not self._rows:
            with self._change:
                self._change.wait(_WAIT_S)
        return bool(self._ready)

    def next_bundle(self) -> RefBundle:
        """Return the next task as a Ray Data bundle: one block of one row."""
        with self._change:
            task = self._ready.popleft()
            self._change.notify_all()
        block = pa.Table.from_pylist([to_row(task)])
        row: Any = ray.put(block)
        self._rows[task.shard_id] = row
        self.emitted += 1
        metadata = BlockMetadata(
            num_rows=1, size_bytes=block.nbytes, input_files=None, exec_stats=None
        )
        return RefBundle((BlockEntry(row, metadata),), schema=None, owns_blocks=False)


@dataclass(frozen=True, repr=False, eq=False)
class ShardSource(LogicalOperator, SourceOperator):
    """Logical operator: the start of a dataset."""

    feed: Any = None

    def output_data(self) -> None:
        """Return None: nothing is known before the run."""

    def infer_metadata(self) -> BlockMetadata:
        """Return empty metadata: nothing is known before the run."""
        return BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    def is_lineage_serializable(self) -> bool:
        """Return False: the feed holds a thread."""
        return False


class _ShardOperator(InputDataBuffer):
    """Physical operator: Ray Data's own for given input, with a feed instead of a list."""

    def __init__(self, context: DataContext, feed: Feed) -> None:
        super().__init__(context, input_data=[])
        self._is_execution_marked_finished = False
        self._estimated_num_output_bundles = None
        self._feed = feed

    def start(self, *arguments: Any, **options: Any) -> None:
        super().start(*arguments, **options)
        self._feed.start()

    def throttling_disabled(self) -> bool:
        """Return True: it runs nothing, but Ray would reserve a share of the GPUs for it."""
        return True

    def has_next(self) -> bool:
        return self._feed.ready() and (
            self._feed.open_shards < _MIN_OPEN_SHARDS or not self._ahead()
        )

    def _ahead(self) -> bool:
        """Return whether enough shards wait for a reader, or readers are far ahead of writers."""
        stages: list[Any] = [*self.output_dependencies]
        while stages[-1].output_dependencies:
            stages += stages[-1].output_dependencies
        reader, writer = stages[0]._metrics, stages[-1]._metrics
        if self._feed.emitted - reader.num_tasks_finished >= _MAX_UNREAD_SHARDS:
            return True
        parts = reader.num_task_outputs_generated - writer.num_task_outputs_generated
        workers = sum(stage.get_actor_info().running for stage in stages)
        return bool(parts > PARTS_AHEAD + PARTS_AHEAD_PER_WORKER * workers)

    def _get_next_inner(self) -> RefBundle:
        bundle = self._feed.next_bundle()
        self._metrics.on_input_received(bundle)
        return bundle

    def has_execution_finished(self) -> bool:
        return self._is_execution_marked_finished or self._feed.ended

    def shutdown(self, *arguments: Any, **options: Any) -> None:
        self._feed.stop()
        super().shutdown(*arguments, **options)


Planner._DEFAULT_PLAN_FNS[ShardSource] = lambda operator, _, context: _ShardOperator(
    context, operator.feed
)


def shard_source(ledger: Ledger) -> Any:
    """Return the lazy Ray dataset of the plan's shards, one row each; it can run only once."""
    context = DataContext.get_current().copy()
    logical = LogicalPlan(ShardSource(Feed(ledger)), context)
    return ray.data.Dataset(logical, context, DatasetStats(metadata={}, parent=None))
