"""An end to the wait for nodes that never come, in place of Ray Data's own.

Ray Data ends a run in which no block has moved for half an hour. An inverter that is at one part
for longer looks like that: 256 faces of 300 iterations are 47 minutes of a core. What counts here
is whether anyone is there to do the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.errors import ClusterError

# A pool without an actor for so long ends the run; a node takes minutes to come and load a model.
NO_ACTOR_S = 1800.0


class Vigil:
    """Watches that each pool of an execution has an actor, or has none for a short time only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._manned: dict[Any, float] = {}  # operator -> when it last had an actor, or began

    def look(self, operators: list[Any]) -> None:
        """Raise `ClusterError` where a pool had no actor for `NO_ACTOR_S`."""
        now = self._clock()
        for operator in operators:
            pools = operator.get_autoscaling_actor_pools()
            if not pools or operator.has_execution_finished() or operator.get_actor_info().running:
                self._manned[operator] = now
            elif now - self._manned.setdefault(operator, now) >= NO_ACTOR_S:
                needs = pools[0].per_actor_resource_usage()
                wanted = "a GPU" if needs.gpu else f"{needs.cpu:g} CPUs"
                raise ClusterError(
                    f"no node with {wanted} to spare for '{operator.name}' came in "
                    f"{NO_ACTOR_S / 60:g} minutes (`ray status` says what is pending); run again"
                )


class EndVainWait(ExecutionCallback):
    """Keeps a vigil over each execution."""

    def __init__(self) -> None:
        self._vigil = Vigil()

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data."""
        self._vigil.look(list(executor._topology))


def end_vain_waits() -> None:
    """Let a part take as long as it takes, and end runs of this process that have no actor."""
    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # off
    if EndVainWait not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(EndVainWait)
