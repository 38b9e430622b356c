"""The engine: plan, Ray Data pipeline, commits, progress. The one room that knows Ray."""

from pipeline.engine.estimate import estimate_job
from pipeline.engine.report import print_outcome
from pipeline.engine.run import Outcome, run_job

__all__ = ["Outcome", "estimate_job", "print_outcome", "run_job"]
