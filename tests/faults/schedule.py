"""Kinds of faults, and the schedule that follows from a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import actions, input_kinds, ray_kinds, storage_kinds, writer_kinds
from tests.faults.arena import Arena, BrokenPromiseError, Result
from tests.faults.findings import Findings
from tests.faults.runs import ROOT, HangError, UnavailableError
from tests.faults.world import World, environment


@dataclass(frozen=True)
class Kind:
    """Kind of fault, its requirements, and how often the command may run until it succeeds."""

    name: str
    strike: Callable[[Arena], None]
    runs: int
    on_s3: bool = False


KINDS = (
    Kind("kill-in-put", writer_kinds.kill_in_put, 2),
    Kind("terminate-in-put", writer_kinds.terminate_in_put, 2),
    Kind("late-writer", writer_kinds.late_writer, 3),
    Kind("late-writer-new-input", writer_kinds.late_writer_new_input, 3),
    Kind("late-writer-shorter", writer_kinds.late_writer_shorter, 3),
    Kind("late-writer-recut", writer_kinds.late_writer_recut, 3),
    Kind("late-manifest", writer_kinds.late_manifest, 2),
    Kind("two-jobs", writer_kinds.two_jobs, 3),
    Kind("two-part-sizes", writer_kinds.two_part_sizes, 5),
    Kind("input-changes", input_kinds.input_changes, 3),
    Kind("input-shrinks", input_kinds.input_shrinks, 2),
    Kind("full-disk", input_kinds.full_disk, 2),
    Kind("clock-skew", input_kinds.clock_skew, 2),
    Kind("s3-500", storage_kinds.hiccup(actions.error(500)), 1, on_s3=True),
    Kind("s3-503", storage_kinds.hiccup(actions.error(503)), 1, on_s3=True),
    Kind("s3-reset", storage_kinds.hiccup(actions.reset_before), 1, on_s3=True),
    Kind("s3-reset-after", storage_kinds.hiccup(actions.reset_after), 1, on_s3=True),
    Kind("s3-truncated", storage_kinds.truncated_answers, 2, on_s3=True),
    Kind("s3-slow", storage_kinds.stalled, 1, on_s3=True),
    Kind("s3-outage", storage_kinds.outage, 2, on_s3=True),
    Kind("s3-kill-at-put", storage_kinds.kill_at_put, 2, on_s3=True),
    Kind("s3-late-put", storage_kinds.late_put, 2, on_s3=True),
    Kind("s3-late-put-new-input", storage_kinds.late_put_new_input, 3, on_s3=True),
    Kind("s3-late-put-shorter", storage_kinds.late_put_shorter, 3, on_s3=True),
    Kind("s3-late-put-recut", storage_kinds.late_put_recut, 3, on_s3=True),
    Kind("s3-lists-late", storage_kinds.lists_late, 4, on_s3=True),
    Kind("s3-no-condition", storage_kinds.no_condition, 3, on_s3=True),
    Kind("ray-align-actor", ray_kinds.worker_killed(ray_kinds.ALIGNER), 1, on_s3=True),
    Kind("ray-inverter", ray_kinds.worker_killed(ray_kinds.INVERTER), 1, on_s3=True),
    Kind("ray-writer", ray_kinds.worker_killed(ray_kinds.WRITER), 1, on_s3=True),
    Kind("ray-raylet", ray_kinds.raylet_killed, 1, on_s3=True),
    Kind("ray-driver-killed", ray_kinds.driver_killed, 2, on_s3=True),
    Kind("ray-driver-terminated", ray_kinds.driver_terminated, 2, on_s3=True),
    Kind("ray-driver-stopped", ray_kinds.driver_stopped, 1, on_s3=True),
    Kind("ray-writer-stopped", ray_kinds.writer_stopped, 3, on_s3=True),
    Kind("ray-machine-stopped", ray_kinds.machine_stopped, 3, on_s3=True),
    Kind("ray-two-jobs", ray_kinds.two_jobs, 3, on_s3=True),
    Kind("ray-store-stutters", ray_kinds.store_stutters, 1, on_s3=True),
    Kind("s3-expired", storage_kinds.expired, 2, on_s3=True),
)


def kind_of(seed: int) -> Kind:
    """Return the kind of a seed; the seed's random numbers then decide when it strikes."""
    return KINDS[seed % len(KINDS)]


def play(world: World, seed: int) -> Result:
    """Run one schedule to its end and examine the table."""
    kind = kind_of(seed)
    values = {"PYTHONPATH": str(ROOT), **(world.server.env if kind.on_s3 else {})}
    with environment(values):
        return _play(world, seed, kind)


def _play(world: World, seed: int, kind: Kind) -> Result:
    arena = Arena(world, seed, on_s3=kind.on_s3)
    findings, failure, unavailable, hung = Findings(), "", "", False
    done = time.monotonic()
    try:
        kind.strike(arena)
        done = time.monotonic()
        findings = arena.examine()
        if arena.runs > kind.runs:
            failure = f"took {arena.runs} runs, of {kind.runs} that are promised"
    except HangError as error:
        hung, failure = True, str(error)
    except BrokenPromiseError as error:
        failure = str(error)
    except UnavailableError as error:
        unavailable = str(error)
    finally:
        arena.close()
    recovery = max(0.0, done - arena.struck_at) if arena.struck_at else 0.0
    ending = (hung, failure, unavailable)
    return Result(seed, kind.name, arena.when, arena.runs, recovery, findings, *ending)
