"""Progress of a job on stderr: its phase, what it waits for, what runs, how much is done.

A thread writes it, also while Ray starts, a model loads or Ray's loop waits: on a terminal one line
that is updated every second, elsewhere a line (or a JSON event) every ten seconds.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from pipeline.engine.address import in_cluster
from pipeline.engine.console.pace import Pace, format_seconds
from pipeline.engine.console.pending import (
    ClusterState,
    StageState,
    describe_cluster,
    describe_missing,
)
from pipeline.engine.console.screen import Screen, event_line
from pipeline.redaction import without_secrets
from pipeline.storage.retries import storage_retries

if TYPE_CHECKING:
    from pipeline.engine.plan import Backlog
    from pipeline.table import Counts, RunRecord

TICK_S, PLAIN_EVERY_S = 1.0, 10.0
MAX_REPORTED = 20  # failures that are printed
QUIET_S = 30.0  # without a part; after it a line says for how long, and possible reasons
STARTING_WORKERS = "starting the workers"
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def describe_waiting(stages: Sequence[StageState], parts: int) -> str:
    """Return what the stages wait for; "" if all of them work or have worked.

    `parts` is the number of parts written so far.
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


def describe_active(stages: Sequence[StageState]) -> str:
    """Return what the stages do, such as `reading 1, inverting 2`."""
    active = (stage for stage in stages if stage.active)
    return ", ".join(f"{stage.name.removesuffix('e')}ing {stage.active}" for stage in active)


class Progress:
    """Shows the progress of a job until the block ends; with counts after `follow`.

    A signal that stops the job is shown at once, before the main thread handles it.
    """

    current: Progress | None = None

    def __init__(self, *, json_lines: bool = False) -> None:
        self.json_lines = json_lines
        self.screen = Screen(draws=not json_lines)
        self.started = self._phase_began = time.monotonic()
        self.phase = "starting"
        self.stopped_by = ""
        self._every_s = PLAIN_EVERY_S
        self.record: RunRecord | None = None
        self.backlog: Backlog | None = None
        self.failures = 0
        self.stages: list[StageState] = []
        self.cluster: ClusterState | None = None  # None outside a cluster
        self.pace = Pace()
        self._parts = 0
        self.reported: set[str] = set()  # failures that were printed
        self._last_line = self.started
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._wake, self._waker = -1, -1
        self._signals_before: int | None = None

    def __enter__(self) -> Progress:
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        with suppress(ValueError):  # not the main thread, the only one that gets signals
            # Python's C code writes the number of each signal here, whatever Python code runs.
            self._signals_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
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

    def enter_phase(self, phase: str, every_s: float | None = None) -> None:
        """Show the phase that the job enters; "" for the work of the stages.

        A log repeats it every `every_s` seconds (default `PLAIN_EVERY_S`).
        """
        self._every_s = PLAIN_EVERY_S if every_s is None else every_s
        if phase == self.phase:
            return
        self.phase, self._phase_began = phase, time.monotonic()
        if phase:
            self.event("phase", phase=phase)
        self._show_now()

    def follow(self, record: RunRecord, backlog: Backlog) -> None:
        """Show the counts of this run from here on."""
        self.record, self.backlog = record, backlog

    def set_stages(self, stages: list[StageState]) -> None:
        """Set the current state of the stages."""
        self.stages = stages
        if self.phase == STARTING_WORKERS:
            self.enter_phase("")

    def update(self) -> None:
        """Take over the counts of the run; cheap, called for every row."""
        if self.record and self.record.counts.parts > self._parts:
            self._parts = self.record.counts.parts
            self.pace.part(self.record.last_part_seconds, self._done())
            self._show_now()

    def say(self, text: str) -> None:
        """Print a line for people; nothing if stderr is for JSON lines."""
        if not self.json_lines:
            self.screen.say(without_secrets(text))

    def event(self, name: str, level: str = "info", **fields: Any) -> None:
        """Print an event as a JSON line; nothing if stderr is for people."""
        if self.json_lines:
            self.screen.say(event_line(name, level, **fields))

    def failed(self, error: str) -> None:
        """Count a failure; the first ones are printed at once."""
        self.failures += 1
        if not self.json_lines and len(self.reported) < MAX_REPORTED and error not in self.reported:
            self.reported.add(error)
            self.say(f"failed: {error}")

    def stop(self, signal_name: str) -> None:
        """Show that the job is being stopped."""
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
        """Return the seconds to the next tick."""
        if self.screen.is_terminal:
            return TICK_S - (time.monotonic() - self.started) % TICK_S
        return max(0.0, self._every_s - (time.monotonic() - self._last_line))

    def _show_now(self) -> None:
        if self.screen.is_terminal:
            with suppress(OSError):  # the pipe is full: a tick follows anyway
                os.write(self._waker, b"\xff")

    def _show(self) -> None:
        if self.screen.is_terminal:
            self.screen.draw(" · ".join(self.words(short=True)))
        elif time.monotonic() - self._last_line >= self._every_s:
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
        """Return the state in words, the most important first; `short` leaves out details."""
        phase = f"stopping ({self.stopped_by})" if self.stopped_by else self.phase or self.waiting
        counts = (
            self._counts(short) if self.backlog and (self.backlog.shards or self._parts) else []
        )
        return [self._elapsed, *([phase] if phase else []), *self._obstacles(), *counts]

    def _obstacles(self) -> Iterator[str]:
        """Yield what may delay the job: no parts for a while, missing workers, storage retries."""
        quiet = self.quiet_seconds
        # Before the first part `waiting` says what starts.
        if quiet >= QUIET_S and (self._parts or not self.waiting):
            yield f"no part for {format_seconds(quiet)}"
        missing = "" if self.phase or self.waiting else describe_missing(self.stages)
        if missing and self.cluster:
            yield f"asked for {missing}"
        if self.waiting or missing or quiet >= QUIET_S:
            if self.cluster:
                yield from describe_cluster(self.cluster)
            if self.retries:
                yield f"storage: {self.retries} {'retry' if self.retries == 1 else 'retries'}"

    @property
    def quiet_seconds(self) -> float:
        """Return the seconds since the last part, or the start of the stages; 0 if none is due."""
        if self.phase or self.stopped_by or not self.record:
            return 0.0
        record = self.record
        last = record.clock + record.last_part_seconds if record.counts.parts else 0.0
        return time.monotonic() - max(last, self._phase_began)

    @property
    def retries(self) -> int:
        """Return how many requests to storage this process and the cluster's workers repeated."""
        return storage_retries() + (self.cluster.retries if self.cluster else 0)

    @property
    def waiting(self) -> str:
        """Return what the stages wait for; "" if they work."""
        return describe_waiting(self.stages, self._parts)

    def _followed(self) -> tuple[Counts, Backlog]:
        """Return the counts of the run and its backlog."""
        if not self.record or not self.backlog:
            raise ValueError("follow() was not called")
        return self.record.counts, self.backlog

    def _counts(self, short: bool) -> list[str]:
        counts, _ = self._followed()
        words = [self.images]
        if (share := self.share) is not None:
            words.append(f"{share:.0%}".replace("%", " %"))
        if self.phase:  # the stages do not run
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
        if self.stages and not self.stopped_by and (work := describe_active(self.stages)):
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
        """Return committed shards of those listed so far, such as `2 of 10+`."""
        counts, backlog = self._followed()
        more = "" if backlog.complete else "+"
        return f"{counts.shards} of {backlog.shards}{more}"

    def _done(self) -> float:
        """Return the work done: images, or bytes of the input if images cannot be counted."""
        counts, backlog = self._followed()
        return counts.bytes if backlog.chosen else counts.samples

    def _to_do(self) -> float | None:
        counts, backlog = self._followed()
        return (
            backlog.bytes if backlog.chosen else backlog.images_to_do(counts.samples, counts.bytes)
        )

    @property
    def images(self) -> str:
        """Return the images in the table of those in the input, such as `images 7 of about 70`."""
        counts, backlog = self._followed()
        before, to_do = backlog.done_samples, self._to_do()
        done = f"images {before + counts.samples}"
        if to_do is None or backlog.chosen:
            return done
        about = "about " if backlog.uncounted_bytes else ""
        more = "" if backlog.complete else "+"
        return f"{done} of {about}{before + int(to_do)}{more}"

    @property
    def share(self) -> float | None:
        """Return the completed share of the table, from 0 to 1; None while unknown."""
        _, backlog = self._followed()
        to_do, before = self._to_do(), 0 if backlog.chosen else backlog.done_samples
        if to_do is None or not backlog.complete or not before + to_do:
            return None
        return min(1.0, (before + self._done()) / (before + to_do))

    @property
    def rate(self) -> float | None:
        """Return the recent images per second; None while unknown."""
        if not self.record or not self.backlog or self.backlog.chosen:
            return None
        return self.pace.rate(self.record.seconds)

    @property
    def seconds_left(self) -> float | None:
        """Return the remaining seconds; None while unknown, such as during the listing."""
        if not self.record or not self.backlog or not self.backlog.complete:
            return None
        to_do = self._to_do()
        left = None if to_do is None else max(0.0, to_do - self._done())
        return self.pace.seconds_left(self.record.seconds, left)

    def _tell_event(self) -> None:
        if not self.record or not self.backlog:
            seconds = round(time.monotonic() - self._phase_began, 1)
            self.event("waiting", phase=self.phase, seconds=seconds, **self._surroundings())
            return
        counts, left, to_do = self.record.counts, self.seconds_left, self._to_do()
        counted = to_do is not None and not self.backlog.chosen
        self.event(
            "progress",
            shards=counts.shards,
            shards_to_do=self.backlog.shards,
            listed=self.backlog.complete,
            parts=counts.parts,
            samples=counts.samples,
            samples_to_do=to_do if counted else None,
            samples_are_exact=counted and not self.backlog.uncounted_bytes,
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
        """Return the fields of an event about storage and, if there is one, the cluster."""
        cluster = {"cluster": self.cluster._asdict()} if self.cluster else {}
        return {"storage_retries": self.retries, **cluster}


def shared_progress(*, json_lines: bool) -> AbstractContextManager[Progress]:
    """Return a context of the current progress, or of a new one, which ends with the block."""
    return nullcontext(Progress.current) if Progress.current else Progress(json_lines=json_lines)


def enter_phase(phase: str, every_s: float | None = None) -> None:
    """Show the job's phase where progress is shown; see `Progress.enter_phase`."""
    if Progress.current:
        Progress.current.enter_phase(phase, every_s)
