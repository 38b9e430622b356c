"""Inversion of images to W+ codes: ReStyle loop with fixed or adaptive steps, and optimisation."""

from pipeline.inversion.adaptive import invert_adaptively
from pipeline.inversion.allocator import keep_freed_memory
from pipeline.inversion.device import Arithmetic, arithmetic, cpu_has_bfloat16, ready_device
from pipeline.inversion.fast import FastModel
from pipeline.inversion.optimize import OptimizeSettings, latent_spread, optimize
from pipeline.inversion.render import average_image
from pipeline.inversion.restyle_loop import invert
from pipeline.inversion.result import Inversion
from pipeline.inversion.stopping import (
    StepMeasures,
    StopRule,
    converged,
    step_measures,
    step_of,
)

__all__ = [
    "Arithmetic",
    "FastModel",
    "Inversion",
    "OptimizeSettings",
    "StepMeasures",
    "StopRule",
    "arithmetic",
    "average_image",
    "converged",
    "cpu_has_bfloat16",
    "invert",
    "invert_adaptively",
    "keep_freed_memory",
    "latent_spread",
    "optimize",
    "ready_device",
    "step_measures",
    "step_of",
]
