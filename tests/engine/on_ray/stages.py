"""What the tests run in Ray's workers, which import this module: it imports no PyTorch."""

from __future__ import annotations

import os
from typing import Any

from pipeline.engine.messages import FaceBatch, LatentBatch
from pipeline.engine.nodes.node_registry import wait_for_verdict
from pipeline.engine.simulate import SimulatedInvert

DEADLY = 2


class SlowInvert(SimulatedInvert):
    """Slower than any reader."""

    seconds_per_batch = 0.1


class LongInvert(SimulatedInvert):
    """Longer at one part than Ray Data waits for any sign of progress."""

    seconds_per_batch = 5.0


class DeadlyInvert(SimulatedInvert):
    """Ends its process at one part, as a fault below Python does."""

    def process(self, batch: FaceBatch) -> LatentBatch:
        """Return the latents of any other part."""
        if batch.part == DEADLY:
            os._exit(139)
        return super().process(batch)


class AfterVerdict:
    """An actor that begins as the stages do."""

    def __init__(self, context: Any) -> None:
        from ray.data import DataContext

        DataContext._set_current(context)  # as Ray Data's actors do
        wait_for_verdict()

    def began(self) -> bool:
        """Return that it runs."""
        return True
