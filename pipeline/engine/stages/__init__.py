"""Stages of a job, in order. None of them imports PyTorch before its `setup`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.engine.stages.align import Align
from pipeline.engine.stages.base import Stage
from pipeline.engine.stages.invert import Invert
from pipeline.engine.stages.read import Read
from pipeline.engine.stages.write import Write

if TYPE_CHECKING:
    from pipeline.choices import Device
    from pipeline.engine.resolve import ResolvedJob
    from pipeline.table import TableWriter

StageTypes = tuple[type[Read], type[Align], type[Invert], type[Write]]
STAGES: StageTypes = (Read, Align, Invert, Write)


def build_stages(
    types: StageTypes, job: ResolvedJob, writer: TableWriter, device: Device
) -> tuple[Stage, ...]:
    """Return the stages of a job on the driver; Ray sends them to the workers."""
    read, align, invert, write = types
    # An actor with a GPU must not invert on the CPU of a node whose driver is broken.
    inversion = replace(job.inversion, device=device)
    return (
        read(),
        align(job.alignment, job.target),
        invert(inversion, job.spec.columns),
        write(writer),
    )


__all__ = ["STAGES", "Align", "Invert", "Read", "Stage", "StageTypes", "Write", "build_stages"]
