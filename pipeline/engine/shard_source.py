"""The head of the pipeline: shards go to the readers as the plan finds them, a bounded number open.

`ray.data.from_items` takes a list: all shards would have to be listed first, and kept. This hands
them out one by one. It is built on Ray Data's internal operators.
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

# Shards that are read, in the stages, or about to be: of ten images each they still fill 500 GPUs.
OPEN_SHARDS = 2048
# Parts between reader and table: each is 40 KB to the driver, and what Ray Data bounds is the bytes
# of blocks, which are few where images are small.
PARTS_AHEAD, PARTS_AHEAD_A_WORKER = 1024, 8
# Shards that are open at any number of parts, so that a run cannot stand still; and those that may
# wait for a reader.
_FEW_SHARDS, _UNREAD_SHARDS = 32, 64
_READY = 64
_WAIT_S = 0.05


class Feed:
    """Takes shards from the plan in a thread, so that Ray Data's loop never waits for a listing."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._ready: deque[ShardTask] = deque()
        self._change = threading.Condition()
        self._ended = self._stopped = False
        self.given = 0  # shards handed out
        # Ray reads a shard again from its row when a node with its parts is lost.
        self._rows: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._pull, name="plan", daemon=True)

    def start(self) -> None:
        """Begin to take shards."""
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
        except Exception as error:  # noqa: BLE001 - raised by the run when all that was read is done
            self.ledger.plan.error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def stop(self) -> None:
        """Take no more; what is handed out goes on."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    @property
    def open_shards(self) -> int:
        """Shards that were handed out and are not committed, but for those that failed."""
        return len(self._rows) - self.ledger.failed_shards

    @property
    def ended(self) -> bool:
        """Whether nothing is left to hand out."""
        return (self._ended or self._stopped) and not self._ready

    def ready(self) -> bool:
        """Whether a shard can be handed out; waits a little where there is nothing else to do."""
        while self.ledger.closed:
            self._rows.pop(self.ledger.closed.popleft(), None)
        if self.open_shards >= OPEN_SHARDS:
            return False
        if not self._ready and not self._ended and not self._rows:
            with self._change:
                self._change.wait(_WAIT_S)
        return bool(self._ready)

    def next_bundle(self) -> RefBundle:
        """The next shard as Ray Data takes it: one row, one block."""
        with self._change:
            task = self._ready.popleft()
            self._change.notify_all()
        block = pa.Table.from_pylist([to_row(task)])
        row: Any = ray.put(block)
        self._rows[task.shard_id] = row
        self.given += 1
        metadata = BlockMetadata(
            num_rows=1, size_bytes=block.nbytes, input_files=None, exec_stats=None
        )
        return RefBundle((BlockEntry(row, metadata),), schema=None, owns_blocks=False)


@dataclass(frozen=True, repr=False, eq=False)
class ShardSource(LogicalOperator, SourceOperator):
    """The logical operator: where a dataset starts."""

    feed: Any = None

    def output_data(self) -> None:
        """Nothing is known before the run."""

    def infer_metadata(self) -> BlockMetadata:
        """Nothing is known before the run."""
        return BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    def is_lineage_serializable(self) -> bool:
        """It holds a thread."""
        return False


class _ShardOperator(InputDataBuffer):
    """The physical operator: Ray Data's own for given input, with a feed in place of a list."""

    def __init__(self, context: DataContext, feed: Feed) -> None:
        super().__init__(context, input_data=[])
        self._is_execution_marked_finished = False
        self._estimated_num_output_bundles = None
        self._feed = feed

    def start(self, *arguments: Any, **options: Any) -> None:
        super().start(*arguments, **options)
        self._feed.start()

    def throttling_disabled(self) -> bool:
        """True: it runs nothing, but would be given a share of the GPUs that inverters lack."""
        return True

    def has_next(self) -> bool:
        return self._feed.ready() and (self._feed.open_shards < _FEW_SHARDS or not self._ahead())

    def _ahead(self) -> bool:
        """Whether enough shards wait for a reader, or the readers are far ahead of the writers."""
        stages: list[Any] = [*self.output_dependencies]
        while stages[-1].output_dependencies:
            stages += stages[-1].output_dependencies
        reader, writer = stages[0]._metrics, stages[-1]._metrics
        if self._feed.given - reader.num_tasks_finished >= _UNREAD_SHARDS:
            return True
        parts = reader.num_task_outputs_generated - writer.num_task_outputs_generated
        workers = sum(stage.get_actor_info().running for stage in stages)
        return bool(parts > PARTS_AHEAD + PARTS_AHEAD_A_WORKER * workers)

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
    """Return the lazy Ray dataset of the plan's shards, one row each; it can be run once."""
    context = DataContext.get_current().copy()
    logical = LogicalPlan(ShardSource(Feed(ledger)), context)
    return ray.data.Dataset(logical, context, DatasetStats(metadata={}, parent=None))
