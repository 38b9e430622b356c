"""Faults: processes of a real Ray cluster die or stop while the job writes an object."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults import actions
from tests.faults.arena import Arena, BrokenPromiseError
from tests.faults.processes import descendants, send
from tests.faults.proxy import Rule
from tests.faults.runs import ProcessRun, UnavailableError

# Parts of the titles of Ray's worker processes.
ALIGNER, INVERTER, WRITER = "HashedAlign", "HashedInvert", "WriteStage"
NOTHING = " (nothing to kill)"
FIRST_PUTS = 8  # of 26 in total: later, the first stages may have finished


@contextmanager
def striking(arena: Arena, strike: Callable[[], None]) -> Iterator[threading.Event]:
    """Inside the block, call `strike` during a put that the seed selects."""
    folder = arena.rng.choice(["latents", "rejects"])
    nth = arena.rng.randint(1, FIRST_PUTS // 2)
    after = arena.rng.random() < 0.5
    moment = f"{'after' if after else 'before'} put {nth} in {folder}/"

    def now() -> None:
        arena.struck(moment)
        strike()

    rule = Rule(
        "PUT", f"{arena.bucket}/table/{folder}/", actions.calling(now, after=after), nth - 1
    )
    with arena.world.proxy.breaking(rule):
        yield rule.hit
    if not arena.when:
        raise BrokenPromiseError("the put at which to strike never came")
    if NOTHING in arena.when:
        raise UnavailableError("the process to kill had ended its work before")


def killing(arena: Arena, find: Callable[[], list[int]]) -> Callable[[], None]:
    """Kill one of the processes that `find` returns at that time."""

    def strike() -> None:
        pids = find()
        if not pids:
            arena.when += NOTHING
            return
        send([arena.rng.choice(sorted(pids))], signal.SIGKILL)

    return strike


def worker_killed(title: str) -> Callable[[Arena], None]:
    """Kill one worker process of a stage: the run must succeed without a repetition."""

    def strike(arena: Arena) -> None:
        cluster = arena.world.cluster
        with striking(arena, killing(arena, lambda: cluster.workers(title))):
            arena.finish(arena.on_cluster(), arena.on_cluster)

    return strike


def raylet_killed(arena: Arena) -> None:
    """Kill the raylet of one of two worker nodes: everything that ran there is lost."""
    cluster = arena.world.cluster
    try:
        with striking(arena, killing(arena, lambda: cluster.raylets)):
            arena.finish(arena.on_cluster(), arena.on_cluster)
    finally:
        cluster.renew()


def driver_killed(arena: Arena) -> None:
    """Kill the driver; the next run starts at once, while remains of the first still exist."""
    _driver_ends(arena, signal.SIGKILL, -signal.SIGKILL)


def driver_terminated(arena: Arena) -> None:
    """Send SIGTERM to the driver."""
    _driver_ends(arena, signal.SIGTERM, 1)


def _driver_ends(arena: Arena, number: int, code: int) -> None:
    runs: list[ProcessRun] = []
    with striking(arena, lambda: runs[0].signal(number)):
        runs.append(arena.on_cluster())
        ended = arena.end(runs[0])
    if ended.code != code:
        raise BrokenPromiseError(f"the driver ended with {ended.code}: {ended.said[-1000:]}")
    arena.finish(arena.on_cluster(), arena.on_cluster)


def driver_stopped(arena: Arena) -> None:
    """Stop the driver for some seconds; the cluster waits for it."""
    runs: list[ProcessRun] = []
    seconds = arena.rng.uniform(3, 12)
    with striking(arena, lambda: runs[0].signal(signal.SIGSTOP)) as hit:
        runs.append(arena.on_cluster())
        _wait(hit, runs[0])
        time.sleep(seconds)
        arena.when += f", for {seconds:.0f} s"
        runs[0].signal(signal.SIGCONT)
        arena.finish(runs[0], arena.on_cluster)


def writer_stopped(arena: Arena) -> None:
    """Stop the workers that write; a second run finishes the table; then they continue."""
    cluster = arena.world.cluster
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(cluster.workers(WRITER))
        send(stopped, signal.SIGSTOP)

    try:
        with striking(arena, stop) as hit:
            first = arena.on_cluster()
            _wait(hit, first)
            arena.finish(arena.on_cluster(), arena.on_cluster)
            arena.when += f", {len(stopped)} stopped"
            send(stopped, signal.SIGCONT)
            arena.finish(first, arena.on_cluster)
    finally:
        send(stopped, signal.SIGCONT)


def machine_stopped(arena: Arena) -> None:
    """Stop driver, raylet and workers; another run finishes; then the first continues."""
    stopped: list[int] = []
    runs: list[ProcessRun] = []

    def stop() -> None:
        stopped.extend([runs[0].pid, *descendants(runs[0].pid)])
        send(stopped, signal.SIGSTOP)

    try:
        with striking(arena, stop) as hit:
            runs.append(arena.on_this_machine())
            _wait(hit, runs[0])
            arena.finish(arena.on_this_machine(), arena.on_this_machine)
            send(stopped, signal.SIGCONT)
            arena.finish(runs[0], arena.on_this_machine)
    finally:
        send(stopped, signal.SIGCONT)


def two_jobs(arena: Arena) -> None:
    """Let two drivers on one cluster write one table at the same time."""
    first, second = arena.on_cluster(), arena.on_cluster()
    arena.struck("at the same time")
    endings = [arena.end(first), arena.end(second)]
    if all(ended.code for ended in endings):
        arena.finish(arena.on_cluster(), arena.on_cluster)


def store_stutters(arena: Arena) -> None:
    """Let about every seventh request fail, in one of four ways, during the whole run."""
    breaks = [actions.error(500), actions.error(503), actions.reset_before, actions.reset_after]
    rules = [
        Rule(".*", f"{arena.bucket}/", arena.rng.choice(breaks), skip, 1)
        for skip in range(3, 120, arena.rng.randint(5, 9))
    ]
    arena.struck(f"{len(rules)} requests")
    with arena.world.proxy.breaking(*rules):
        arena.finish(arena.on_cluster(), arena.on_cluster)


def _wait(hit: threading.Event, run: ProcessRun) -> None:
    """Wait for the fault; the run must not end before."""
    while not hit.wait(0.2):
        if not run.running():
            raise BrokenPromiseError(f"the run ended before the strike: {run.wait()}")
