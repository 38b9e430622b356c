"""The stages of a job, in order. None of them imports PyTorch before its `setup`."""

from __future__ import annotations

from pipeline.engine.stages.align import Align
from pipeline.engine.stages.base import JobStage, Stage
from pipeline.engine.stages.invert import Invert
from pipeline.engine.stages.read import Read
from pipeline.engine.stages.write import Write

STAGES: tuple[type[JobStage], ...] = (Read, Align, Invert, Write)

__all__ = ["STAGES", "Align", "Invert", "JobStage", "Read", "Stage", "Write"]
