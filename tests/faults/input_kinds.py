"""Faults: the input changes during a job, the disk fills, the clock is wrong."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults import clock
from tests.faults.arena import Arena, BrokenPromiseError
from tests.faults.dataset import picture, write_archive, write_loose
from tests.faults.findings import table_files
from tests.faults.light import Wreck
from tests.faults.processes import wait_until_stopped
from tests.faults.writer_kinds import some_wreck


def _overwrite(folder: Path) -> None:
    """Write another archive into the same file while readers have it open."""
    ready = write_archive(folder / "ready", "a", 17, edition=1)
    (folder / "a.tar").write_bytes(ready.read_bytes())
    ready.unlink()
    ready.parent.rmdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "a.tar replaced": lambda folder: write_archive(folder, "a", 17, edition=1),
    "a.tar shorter": lambda folder: write_archive(folder, "a", 6, edition=1),
    "a.tar overwritten": _overwrite,
    "picture overwritten": lambda folder: write_loose(folder, 6, edition=1),
    "picture added": lambda folder: (folder / "loose" / "0005.png").write_bytes(picture("more")),
    "picture removed": lambda folder: (folder / "loose" / "007.png").unlink(),
}


def input_changes(arena: Arena) -> None:
    """Change the input while a run is stopped in the middle of a write."""
    name = arena.rng.choice(list(CHANGES))
    nth = arena.rng.randint(1, 10)
    before = arena.undisturbed("before")
    run = arena.light(Wreck("latents", nth, "after", signal.SIGSTOP))
    if not wait_until_stopped(run.pid, 120):
        raise BrokenPromiseError(f"the run was to stop and did not: {run.wait()}")
    CHANGES[name](arena.photos)
    arena.struck(f"{name} at part {nth}")
    run.signal(signal.SIGCONT)
    ended = arena.end(run)
    if ended.code == 0:
        files = table_files(arena.output)[0]
        if files not in (before, arena.undisturbed("after")):
            raise BrokenPromiseError("the run says that it is done, with a mixture of two inputs")
    arena.finish(arena.light())


def input_shrinks(arena: Arena) -> None:
    """Remove pictures and an archive that was in progress, after a run was killed."""
    arena.files_per_shard = 3
    wreck = some_wreck(arena, signal.SIGKILL)
    killed = arena.end(arena.light(wreck))
    if killed.code not in (
        -signal.SIGKILL,
        0,
    ):  # more parts than `some_wreck` counts, so that it may never strike
        raise BrokenPromiseError(f"the run was to be killed and ended with {killed}")
    pictures = sorted((arena.photos / "loose").iterdir())
    gone = arena.rng.sample(pictures, arena.rng.randint(1, len(pictures)))
    for picture_file in gone:
        picture_file.unlink()
    in_progress = not Path(arena.output, "_shards", "b.json").exists()
    if in_progress:
        (arena.photos / "b.tar").unlink()
    arena.struck(f"{wreck}; {len(gone)} pictures{' and b.tar' * in_progress} leave")
    arena.finish(arena.light())


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """Mount a file system of so many KB at `folder`; calling the result enlarges it."""
    folder.mkdir(parents=True)

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    mount(f"size={kilobytes}k")
    try:
        yield lambda: mount("remount,size=64m")
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def full_disk(arena: Arena) -> None:
    """Fill the disk in the middle of the run, then enlarge it."""
    kilobytes = arena.rng.randint(8, 300)
    disk = arena.folder / "disk"
    with ExitStack() as mounted:
        try:
            make_room = mounted.enter_context(small_disk(disk, kilobytes))
        except (
            OSError,
            subprocess.CalledProcessError,
        ):  # root in a container may not be allowed to mount
            _small_files(arena)
            return
        arena.output = str(disk / "table")
        ended = arena.end(arena.light())
        arena.struck(f"disk of {kilobytes} KB")
        if ended.code != 1 or "No space left" not in ended.said:
            raise BrokenPromiseError(f"the disk is full, and the run said {ended}")
        make_room()
        arena.finish(arena.light())
        arena.examine()


def _small_files(arena: Arena) -> None:
    """Limit the length of files, where mounting is not permitted."""
    limit = arena.rng.randint(5_000, 60_000)
    ended = arena.end(arena.light(environment={"FAULTS_FILE_LIMIT": str(limit)}))
    arena.struck(f"files of at most {limit} bytes")
    if ended.code != 1 or "too large" not in ended.said:
        raise BrokenPromiseError(f"no file could be that long, and the run said {ended}")
    arena.finish(arena.light())


def clock_skew(arena: Arena) -> None:
    """Shift the clock by days in a run that is killed, and the other way in the next run."""
    skews = [arena.rng.choice([-1, 1]) * arena.rng.randint(1, 400) * 3600 for _ in range(2)]
    wreck = some_wreck(arena, signal.SIGKILL)
    shim = clock.shim(arena.world.folder)
    killed = arena.end(arena.alone(wreck, clock.environment(shim, skews[0])))
    arena.struck(f"clock {skews[0] // 3600:+} h, then {skews[1] // 3600:+} h; {wreck}")
    if killed.code != -signal.SIGKILL:
        raise BrokenPromiseError(f"the run was to be killed and ended with {killed}")
    arena.finish(
        arena.alone(None, clock.environment(shim, skews[1])),
        lambda: arena.alone(None, clock.environment(shim, skews[1])),
    )
