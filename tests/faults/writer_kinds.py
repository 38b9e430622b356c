"""Faults of the process that writes a table to a disk, at every point of every write."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.arena import Arena, BrokenPromiseError
from tests.faults.dataset import write_archive
from tests.faults.light import POINTS, Wreck
from tests.faults.processes import wait_until_stopped
from tests.faults.runs import LightRun

FOLDERS = {"latents": 11, "rejects": 11, "_shards": 4}  # number of files in each folder


def some_wreck(arena: Arena, number: int) -> Wreck:
    """Return a signal at a point that the seed selects."""
    folder = arena.rng.choice(list(FOLDERS))
    nth = arena.rng.randint(1, FOLDERS[folder])
    return Wreck(folder, nth, arena.rng.choice(POINTS), number)


def kill_in_put(arena: Arena) -> None:
    """Kill a run in the middle of a write."""
    wreck = some_wreck(arena, signal.SIGKILL)
    run = arena.light(wreck)
    ended = arena.end(run)
    arena.struck(str(wreck))
    if ended.code != -signal.SIGKILL:
        raise BrokenPromiseError(f"the run was to be killed and ended with {ended.code}")
    arena.finish(arena.light())


def terminate_in_put(arena: Arena) -> None:
    """Terminate a run in the middle of a write: it reports that and ends with 1."""
    wreck = some_wreck(arena, signal.SIGTERM)
    ended = arena.end(arena.light(wreck))
    arena.struck(str(wreck))
    if ended.code != 1 or '"errors": []' not in ended.said:
        raise BrokenPromiseError(f"SIGTERM ended the run with {ended.code}: {ended.said}")
    arena.finish(arena.light())


def stopped_run(arena: Arena) -> LightRun:
    """Return a run that has stopped itself in the middle of a write."""
    wreck = some_wreck(arena, signal.SIGSTOP)
    run = _stopped_at(arena, wreck)
    arena.struck(str(wreck))
    return run


def late_writer(arena: Arena) -> None:
    """Stop a run in the middle of a write; a second run finishes; then the first continues."""
    run = stopped_run(arena)
    arena.finish(arena.light())
    run.signal(signal.SIGCONT)
    arena.finish(run)


def late_writer_new_input(arena: Arena) -> None:
    """Do `late_writer`, and change the input before the second run."""
    run = stopped_run(arena)
    write_archive(arena.photos, "a", 17, edition=1)
    arena.finish(arena.light())
    run.signal(signal.SIGCONT)
    arena.finish(run)


def late_writer_shorter(arena: Arena) -> None:
    """Kill a run that wrote a part next to a commit with fewer parts, of a shorter archive."""
    _late_beyond(arena, lambda: write_archive(arena.photos, "a", 6, edition=1))


def late_writer_recut(arena: Arena) -> None:
    """Kill a run that wrote a part next to a commit with fewer, larger parts."""
    _late_beyond(arena, lambda: arena.recut_in(6))


def _late_beyond(arena: Arena, change: Callable[[], object]) -> None:
    """Stop before one of the last two of five parts is renamed; kill after the rename."""
    folder = arena.rng.choice(["latents", "rejects"])
    nth, point = arena.rng.choice([4, 5]), arena.rng.choice(["before", "torn", "whole"])
    wreck = Wreck(folder, nth, point, signal.SIGSTOP, then_killed=True)
    run = _stopped_at(arena, wreck)
    arena.struck(f"{wreck}, SIGKILL after it")
    change()
    arena.finish(arena.light())
    run.signal(signal.SIGCONT)
    if arena.end(run).code != -signal.SIGKILL:
        raise BrokenPromiseError("the run was to be killed after its late put")
    arena.finish(arena.light())


def late_manifest(arena: Arena) -> None:
    """Write a manifest after its run died and another run has replaced its parts."""
    dead = _stopped_at(arena, Wreck("_shards", 1, "whole", signal.SIGSTOP, then_killed=True))
    arena.recut_in(6)
    nth = arena.rng.randint(1, 3)
    second = _stopped_at(arena, Wreck("latents", nth, "after", signal.SIGSTOP))
    dead.signal(signal.SIGCONT)
    if arena.end(dead).code != -signal.SIGKILL:
        raise BrokenPromiseError("the run was to be killed after its late put")
    arena.struck(f"after put {nth} of the second run")
    second.signal(signal.SIGCONT)
    arena.finish(second)


def _stopped_at(arena: Arena, wreck: Wreck) -> LightRun:
    run = arena.light(wreck)
    if not wait_until_stopped(run.pid, 120):
        raise BrokenPromiseError(f"the run was to stop and did not: {run.wait()}")
    return run


def two_jobs(arena: Arena) -> None:
    """Run two jobs over one table at the same time, in step."""
    pace = {"FAULTS_PACE_S": "0.02"}
    first = arena.light(environment=pace)
    second = arena.light(environment={"FAULTS_PACE_S": f"{arena.rng.uniform(0.01, 0.04):.3f}"})
    arena.struck("at the same time")
    endings = [arena.end(first), arena.end(second)]
    if all(ended.code for ended in endings):
        arena.finish(arena.light())


def two_part_sizes(arena: Arena) -> None:
    """Run two jobs over one table at the same time with parts of different sizes."""
    first = arena.light(environment={"FAULTS_PACE_S": "0.02"})
    size = arena.rng.choice([3, 6])
    second = arena.light(
        environment={"FAULTS_PACE_S": f"{arena.rng.uniform(0.01, 0.04):.3f}"}, part_size=size
    )
    arena.struck(f"part sizes 4 and {size}")
    arena.recut = True
    arena.end(first)
    arena.end(second)
    arena.finish(arena.light())
