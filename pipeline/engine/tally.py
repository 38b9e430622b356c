"""Counts of a run."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline.storage import LeftOut


@dataclass
class Tally:
    """Counts of this run so far."""

    parts: int = 0
    samples: int = 0
    faces: int = 0
    shards: int = 0
    bytes: int = 0  # of the input: of shards that are committed, and of images of others
    first_seconds: float = 0.0  # from the start to the first part
    first_bytes: int = 0  # of that part
    last_seconds: float = 0.0  # from the start to the latest part
    icc_ignored: int = 0  # images with faces whose colour profile is damaged or not for them
    identity_missed: int = 0  # faces whose identity could not be measured: null in the table
    reasons: Counter[str] = field(default_factory=Counter)
    empty_shards: int = 0  # that were committed without a sample
    left_out: LeftOut = field(default_factory=LeftOut)  # by the readers of committed shards
    stage_seconds: Counter[str] = field(default_factory=Counter)
    inversion_seconds: float = 0.0  # of the method alone, without metrics and tables
    started: float = field(default_factory=time.monotonic)

    @property
    def rejects(self) -> int:
        """Reject rows of all reasons."""
        return sum(self.reasons.values())

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started
