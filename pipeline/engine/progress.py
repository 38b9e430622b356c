"""What a person sees while a job works: what is awaited, what runs, how far it is.

A thread of its own tells it, also while Ray starts, a model is loaded or Ray's loop waits: on a
terminal in a line that ticks every second, elsewhere in a line (or an event) every ten.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeline.engine.address import in_cluster
from pipeline.engine.pace import Pace, format_seconds
from pipeline.engine.pending import (
    ClusterState,
    StageState,
    describe_cluster,
    describe_missing,
    describe_retries,
)
from pipeline.engine.screen import Screen, event_line
from pipeline.redaction import without_secrets
from pipeline.storage.retries import storage_retries

if TYPE_CHECKING:
    from pipeline.engine.plan import Found
    from pipeline.table import Counts, RunRecord

TICK_S, PLAIN_EVERY_S = 1.0, 10.0
MOST_TOLD = 20  # failures
QUIET_S = 30.0  # without a part: from here on a line says for how long, and what may be why
STARTING_WORKERS = "starting the workers"
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_VERBS = {"read": "reading", "align": "aligning", "invert": "inverting", "write": "writing"}


def awaited(stages: Sequence[StageState], parts: int) -> str:
    """What the stages wait for; "" where all of them have, or had, something to do.

    `parts` is how many are in the table.
    """
    by_name = {stage.name: stage for stage in stages}
    words = {
        "invert": ("loading the model", "waiting for an inverter (a free core, or its model)"),
        "align": ("starting the aligners", "waiting for an aligner (a free core)"),
        "write": ("starting the writers", "waiting for a writer (a free core)"),
    }
    for name, (at_first, later) in words.items():
        stage = by_name.get(name)
        if stage and not stage.actors and (stage.pending or stage.queued):
            if in_cluster() and (missing := describe_missing(stages)):
                return f"waiting for {missing}"
            return later if in_cluster() or parts else at_first
    reads = by_name.get("read")
    others = sum(stage.active + stage.queued for stage in stages if stage.name != "read")
    return "waiting for storage" if reads and reads.active and not others else ""


def at_work(stages: Sequence[StageState]) -> str:
    """What the stages do, such as `reading 1, inverting 2`."""
    return ", ".join(f"{_VERBS[one.name]} {one.active}" for one in stages if one.active)


class Progress:
    """Tells how far a job is until the block ends; counts from `follow` on.

    A signal that stops the job is told at once, before the main thread has taken note of it.
    """

    current: Progress | None = None

    def __init__(self, *, json_lines: bool = False) -> None:
        self.json_lines = json_lines
        self.screen = Screen()
        self.started = self._phase_began = time.monotonic()
        self.phase = "starting"
        self.stopped_by = ""
        self._every_s: float | None = None
        self.record: RunRecord | None = None
        self.found: Found | None = None
        self.failures = 0
        self.stages: list[StageState] = []
        self.cluster: ClusterState | None = None  # where the job is in one
        self.pace = Pace()
        self._parts = 0
        self.told: set[str] = set()  # failures that were printed
        self._last_line = self.started
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._wake, self._waker = -1, -1
        self._signals_before: int | None = None

    def __enter__(self) -> Progress:
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        with suppress(ValueError):  # not in the main thread, which alone gets signals
            # What the C side of Python writes a signal's number to, whatever Python is at.
            self._signals_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        if self.screen.is_terminal and not self.json_lines:
            self.screen.__enter__()
        Progress.current = self
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        Progress.current = None
        if self._signals_before is not None:
            signal.set_wakeup_fd(self._signals_before)
        os.write(self._waker, b"\0")
        self._thread.join()
        os.close(self._waker)
        os.close(self._wake)
        self.screen.__exit__()

    def doing(self, phase: str, every_s: float | None = None) -> None:
        """Say what the job is at, which is not work on images; "" where it is.

        In a log it is told every `every_s` seconds (default `PLAIN_EVERY_S`).
        """
        self._every_s = every_s
        if phase == self.phase:
            return
        self.phase, self._phase_began = phase, time.monotonic()
        if phase:
            self.event("phase", phase=phase)
        self._show_now()

    def follow(self, record: RunRecord, found: Found) -> None:
        """Tell the counts of this run from here on."""
        self.record, self.found = record, found

    def look(self, stages: list[StageState]) -> None:
        """Take in what Ray Data's loop sees of its stages."""
        self.stages = stages
        if self.phase == STARTING_WORKERS:
            self.doing("")

    def update(self) -> None:
        """Take in the counts; cheap, and called for every row."""
        if self.record and self.record.counts.parts > self._parts:
            self._parts = self.record.counts.parts
            self.pace.part(self.record.last_part_seconds, self._done())
            self._show_now()

    def say(self, text: str) -> None:
        """A line for people; nothing where stderr is for machines."""
        if not self.json_lines:
            self.screen.say(without_secrets(text))

    def event(self, name: str, level: str = "info", **fields: Any) -> None:
        """A line for machines; nothing where stderr is for people."""
        if self.json_lines:
            self.screen.say(event_line(name, level, **fields))

    def failed(self, error: str) -> None:
        """Count a failure, and print the first of them at once."""
        self.failures += 1
        if not self.json_lines and len(self.told) < MOST_TOLD and error not in self.told:
            self.told.add(error)
            self.say(f"failed: {error}")

    def stop(self, signal_name: str) -> None:
        """Say that the job is being stopped."""
        if self.stopped_by:
            return
        self.stopped_by = signal_name
        self.event("stopping", "warning", signal=signal_name)
        if not self.screen.is_terminal:
            self.say(f"{self._elapsed}  stopping ({signal_name})")
        self._show()

    def _tick(self) -> None:
        while True:
            ready, _, _ = select.select([self._wake], [], [], self._pause())
            woken = os.read(self._wake, 4096) if ready else b""
            for number, name in _SIGNALS.items():
                if number in woken:
                    self.stop(name)
            if 0 in woken:
                return
            self._show()

    def _pause(self) -> float:
        """Seconds to the next tick."""
        if self.screen.is_terminal and not self.json_lines:
            return TICK_S - (time.monotonic() - self.started) % TICK_S
        return max(0.0, self._due_s - (time.monotonic() - self._last_line))

    @property
    def _due_s(self) -> float:
        """Seconds from one line of a log to the next."""
        return PLAIN_EVERY_S if self._every_s is None else self._every_s

    def _show_now(self) -> None:
        if self.screen.is_terminal and not self.json_lines:
            with suppress(OSError):  # the pipe is full: a tick is under way
                os.write(self._waker, b"\xff")

    def _show(self) -> None:
        if self.screen.is_terminal and not self.json_lines:
            self.screen.draw(" · ".join(self.words(short=True)))
        elif time.monotonic() - self._last_line >= self._due_s:
            self._last_line = time.monotonic()
            if self.json_lines:
                self._tell_event()
            else:
                first, *rest = self.words()
                self.say(f"{first}  {' · '.join(rest)}")

    @property
    def _elapsed(self) -> str:
        return format_seconds(int(time.monotonic() - self.started))

    def words(self, *, short: bool = False) -> list[str]:
        """The state in words, the most telling first; a `short` line leaves out what can wait."""
        doing = f"stopping ({self.stopped_by})" if self.stopped_by else self.phase or self.waiting
        counts = self._counts(short) if self.found and (self.found.shards or self._parts) else []
        return [self._elapsed, *([doing] if doing else []), *self._obstacles(), *counts]

    def _obstacles(self) -> Iterator[str]:
        """Yield what may keep the job from going on: silence, nodes that are missing, storage."""
        quiet = self.quiet_seconds
        # Before the first part the line says what starts.
        if quiet >= QUIET_S and (self._parts or not self.waiting):
            yield f"no part for {format_seconds(quiet)}"
        missing = "" if self.phase or self.waiting else describe_missing(self.stages)
        if missing and self.cluster:
            yield f"asked for {missing}"
        if self.waiting or missing or quiet >= QUIET_S:
            if self.cluster:
                yield from describe_cluster(self.cluster)
            if retries := describe_retries(self.retries):
                yield retries

    @property
    def quiet_seconds(self) -> float:
        """Seconds since the last part, or since the stages began; 0 where none is expected."""
        if self.phase or self.stopped_by or not self.record:
            return 0.0
        record = self.record
        last = record.clock + record.last_part_seconds if record.counts.parts else 0.0
        return time.monotonic() - max(last, self._phase_began)

    @property
    def retries(self) -> int:
        """Requests to storage that were repeated, by this process and by a cluster's workers."""
        return storage_retries() + (self.cluster.retries if self.cluster else 0)

    @property
    def waiting(self) -> str:
        """What the stages wait for; "" where they work."""
        return awaited(self.stages, self._parts)

    def _followed(self) -> tuple[Counts, Found]:
        """The counts, once there are any."""
        if not self.record or not self.found:
            raise ValueError("no counts are followed yet")
        return self.record.counts, self.found

    def _counts(self, short: bool) -> list[str]:
        counts, _ = self._followed()
        words = [self.images]
        if (share := self.share) is not None:
            words.append(f"{share:.0%}".replace("%", " %"))
        if self.phase:  # nothing is inverted yet, or any more
            return words
        words += self._speed()
        if counts.parts:
            words.append(f"faces {counts.faces}")
        if counts.rejects:
            by_reason = ", ".join(f"{name} {n}" for name, n in counts.reasons.most_common())
            words.append(f"rejects {counts.rejects}" + ("" if short else f" ({by_reason})"))
        if self.failures:
            words.append(f"failed {self.failures}")
        if not short:
            words.append(f"shards {self.shards}")
        if self.stages and not self.stopped_by and (work := at_work(self.stages)):
            words.append(work)
        return words

    def _speed(self) -> Iterator[str]:
        left, rate = self.seconds_left, self.rate
        if left is not None:
            yield f"{format_seconds(left)} left"
        if rate is not None:
            yield f"{rate:.1f} images/s" if rate < 100 else f"{rate:.0f} images/s"

    @property
    def shards(self) -> str:
        """Shards committed, of how many as far as the input is listed."""
        counts, found = self._followed()
        more = "" if found.complete else "+"
        return f"{counts.shards} of {found.shards}{more}"

    def _done(self) -> float:
        """What the pace is of: images, or bytes of the input where images cannot be counted."""
        counts, found = self._followed()
        return counts.bytes if found.chosen else counts.samples

    def _to_do(self) -> float | None:
        counts, found = self._followed()
        return found.bytes if found.chosen else found.images_to_do(counts.samples, counts.bytes)

    @property
    def images(self) -> str:
        """Images that are in the table, of how many."""
        counts, found = self._followed()
        before, to_do = found.done_samples, self._to_do()
        done = f"images {before + counts.samples}"
        if to_do is None or found.chosen:
            return done
        about = "about " if found.uncounted_bytes else ""
        more = "" if found.complete else "+"
        return f"{done} of {about}{before + int(to_do)}{more}"

    @property
    def share(self) -> float | None:
        """How much of the table is there, from 0 to 1; None while that is not known."""
        _, found = self._followed()
        to_do, before = self._to_do(), 0 if found.chosen else found.done_samples
        if to_do is None or not found.complete or not before + to_do:
            return None
        return min(1.0, (before + self._done()) / (before + to_do))

    @property
    def rate(self) -> float | None:
        """Images a second of late; None while that is not known."""
        if not self.record or not self.found or self.found.chosen:
            return None
        return self.pace.rate(self.record.seconds)

    @property
    def seconds_left(self) -> float | None:
        """Time left; None while that is not known, as long as the input is listed above all."""
        if not self.record or not self.found or not self.found.complete:
            return None
        to_do = self._to_do()
        left = None if to_do is None else max(0.0, to_do - self._done())
        return self.pace.seconds_left(self.record.seconds, left)

    def _tell_event(self) -> None:
        if not self.record or not self.found:
            seconds = round(time.monotonic() - self._phase_began, 1)
            self.event("waiting", phase=self.phase, seconds=seconds, **self._surroundings())
            return
        counts, left, to_do = self.record.counts, self.seconds_left, self._to_do()
        counted = to_do is not None and not self.found.chosen
        self.event(
            "progress",
            shards=counts.shards,
            shards_to_do=self.found.shards,
            listed=self.found.complete,
            parts=counts.parts,
            samples=counts.samples,
            samples_to_do=to_do if counted else None,
            samples_are_exact=counted and not self.found.uncounted_bytes,
            faces=counts.faces,
            rejects=dict(counts.reasons),
            failures=self.failures,
            phase=self.phase,
            waiting_for=self.waiting,
            stages={stage.name: stage._asdict() for stage in self.stages},
            quiet_seconds=round(self.quiet_seconds, 1),
            **self._surroundings(),
            seconds=round(self.record.seconds, 1),
            seconds_left=None if left is None else round(left),
        )

    def _surroundings(self) -> dict[str, Any]:
        """Return what an event says of storage, and of the cluster where there is one."""
        cluster = {"cluster": self.cluster._asdict()} if self.cluster else {}
        return {"storage_retries": self.retries, **cluster}


@contextmanager
def showing(*, json_lines: bool) -> Iterator[Progress]:
    """The progress that is shown already, or one for the length of the block."""
    if Progress.current:
        yield Progress.current
        return
    with Progress(json_lines=json_lines) as progress:
        yield progress


def doing(phase: str, every_s: float | None = None) -> None:
    """Say what the job of this process is at, if its progress is shown; see `Progress.doing`."""
    if Progress.current:
        Progress.current.doing(phase, every_s)
