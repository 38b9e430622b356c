"""What a person sees while the job runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.engine.logs import EventLog
from pipeline.engine.plan import Found
from pipeline.engine.tally import Tally

PLAIN_EVERY_S = 10.0


def format_seconds(seconds: float) -> str:
    """`75` as `1:15`, `3700` as `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows a `Tally` on stderr; `update` is cheap and may be called for every part."""

    def __init__(self, tally: Tally, found: Found, log: EventLog | None = None) -> None:
        self.tally, self.found, self.log = tally, found, log or EventLog(json_lines=False)
        self.console = Console(stderr=True)
        self.last_line = tally.started
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.is_live = self.console.is_terminal and not self.log.json_lines

    def __enter__(self) -> Progress:
        if self.is_live:
            self.live.start()
            self.update()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.live.stop()

    @property
    def seconds_left(self) -> float | None:
        """Time left, from the bytes a second since the first part: the start is no measure.

        None while that is not known, as long as the input is being listed above all.
        """
        tally = self.tally
        left, since = self.found.bytes - tally.bytes, tally.bytes - tally.first_bytes
        if since <= 0 or left < 0 or not self.found.complete:
            return None
        return (tally.seconds - tally.first_seconds) * left / since

    @property
    def remaining(self) -> str:
        """`seconds_left` for people."""
        left = self.seconds_left
        return "?" if left is None else format_seconds(left)

    @property
    def shards(self) -> str:
        """Shards committed, of how many as far as the input is listed."""
        more = "" if self.found.complete else "+"
        return f"{self.tally.shards}/{self.found.shards}{more}"

    @property
    def line(self) -> str:
        """The state in one line of text."""
        tally = self.tally
        rejected = ", ".join(f"{name} {count}" for name, count in tally.reasons.most_common())
        return (
            f"{format_seconds(tally.seconds)}  shards {self.shards}  "
            f"parts {tally.parts}  faces {tally.faces} "
            f"({tally.faces / max(tally.seconds, 1e-9):.1f}/s)  "
            f"rejects {tally.rejects}{f' ({rejected})' if rejected else ''}  left {self.remaining}"
        )

    def update(self) -> None:
        """Show the present counts: at once on a terminal, every ten seconds elsewhere."""
        if self.is_live:
            self.live.update(self._table(), refresh=True)
        elif time.monotonic() - self.last_line >= PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            if self.log.json_lines:
                self._event()
            else:
                print(self.line, file=sys.stderr, flush=True)

    def _event(self) -> None:
        tally, left = self.tally, self.seconds_left
        self.log.event(
            "progress",
            shards=tally.shards,
            shards_to_do=self.found.shards,
            listed=self.found.complete,
            parts=tally.parts,
            samples=tally.samples,
            faces=tally.faces,
            rejects=dict(tally.reasons),
            seconds=round(tally.seconds, 1),
            seconds_left=None if left is None else round(left),
        )

    def _table(self) -> Table:
        tally = self.tally
        table = Table.grid(padding=(0, 2))
        table.add_row("elapsed", format_seconds(tally.seconds), "left", self.remaining)
        table.add_row("shards", self.shards, "parts", str(tally.parts))
        rate = f"{tally.faces / max(tally.seconds, 1e-9):.1f} a second"
        table.add_row("faces", str(tally.faces), "", rate)
        for name, count in tally.reasons.most_common():
            table.add_row("rejected", str(count), "", name)
        return table
