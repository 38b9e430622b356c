"""Kinds of faults, and what a seed makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import writer_kinds
from tests.faults.arena import Arena, BrokenPromiseError, Result
from tests.faults.findings import Findings
from tests.faults.runs import HangError
from tests.faults.world import World


@dataclass(frozen=True)
class Kind:
    """A kind of fault, what it needs, and how many runs of the command it may take."""

    name: str
    strike: Callable[[Arena], None]
    runs: int
    on_s3: bool = False
    on_ray: bool = False


KINDS = (
    Kind("kill-in-put", writer_kinds.kill_in_put, 2),
    Kind("terminate-in-put", writer_kinds.terminate_in_put, 2),
    Kind("late-writer", writer_kinds.late_writer, 3),
    Kind("late-writer-new-input", writer_kinds.late_writer_new_input, 3),
    Kind("two-jobs", writer_kinds.two_jobs, 3),
    Kind("two-part-sizes", writer_kinds.two_part_sizes, 5),
)


def kind_of(seed: int) -> Kind:
    """The kind of a seed; the seed's random numbers then say when it strikes."""
    return KINDS[seed % len(KINDS)]


def play(world: World, seed: int) -> Result:
    """Run one schedule to its end and examine the table."""
    kind = kind_of(seed)
    arena = Arena(world, seed, on_s3=kind.on_s3)
    findings, failure, hung = Findings(), "", False
    done = time.monotonic()
    try:
        kind.strike(arena)
        done = time.monotonic()
        findings = arena.findings()
        if arena.runs > kind.runs:
            failure = f"took {arena.runs} runs, of {kind.runs} that are promised"
    except HangError as error:
        hung, failure = True, str(error)
    except BrokenPromiseError as error:
        failure = str(error)
    recovery = max(0.0, done - arena.struck_at) if arena.struck_at else 0.0
    return Result(seed, kind.name, arena.when, arena.runs, recovery, findings, hung, failure)
