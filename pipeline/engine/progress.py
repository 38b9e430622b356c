"""What a person sees while the job runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_EVERY_S = 10.0


@dataclass
class Tally:
    """Counts of this run so far."""

    parts: int = 0
    samples: int = 0
    faces: int = 0
    shards: int = 0
    bytes: int = 0
    first_seconds: float = 0.0  # from the start to the first part
    first_bytes: int = 0  # of that part
    last_seconds: float = 0.0  # from the start to the latest part
    reasons: Counter[str] = field(default_factory=Counter)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    inversion_seconds: float = 0.0  # of the method alone, without metrics and tables
    started: float = field(default_factory=time.monotonic)

    @property
    def rejects(self) -> int:
        """Reject rows of all reasons."""
        return sum(self.reasons.values())

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started


def format_seconds(seconds: float) -> str:
    """`75` as `1:15`, `3700` as `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows a `Tally` on stderr; `update` is cheap and may be called for every part."""

    def __init__(self, tally: Tally, shards: int, bytes_to_do: int) -> None:
        self.tally, self.shards, self.bytes_to_do = tally, shards, bytes_to_do
        self.console = Console(stderr=True)
        self.last_line = tally.started
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
            self.update()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    @property
    def remaining(self) -> str:
        """Time left, from the bytes a second since the first part: the start is no measure."""
        tally = self.tally
        left, since = self.bytes_to_do - tally.bytes, tally.bytes - tally.first_bytes
        if since <= 0 or left < 0:
            return "?"
        return format_seconds((tally.seconds - tally.first_seconds) * left / since)

    @property
    def line(self) -> str:
        """The state in one line of text."""
        tally = self.tally
        rejected = ", ".join(f"{name} {count}" for name, count in tally.reasons.most_common())
        return (
            f"{format_seconds(tally.seconds)}  shards {tally.shards}/{self.shards}  "
            f"parts {tally.parts}  faces {tally.faces} "
            f"({tally.faces / max(tally.seconds, 1e-9):.1f}/s)  "
            f"rejects {tally.rejects}{f' ({rejected})' if rejected else ''}  left {self.remaining}"
        )

    def update(self) -> None:
        """Show the present counts: at once on a terminal, every ten seconds elsewhere."""
        if self.console.is_terminal:
            self.live.update(self._table(), refresh=True)
        elif time.monotonic() - self.last_line >= PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            print(self.line, file=sys.stderr, flush=True)

    def _table(self) -> Table:
        tally = self.tally
        table = Table.grid(padding=(0, 2))
        table.add_row("elapsed", format_seconds(tally.seconds), "left", self.remaining)
        table.add_row("shards", f"{tally.shards} of {self.shards}", "parts", str(tally.parts))
        rate = f"{tally.faces / max(tally.seconds, 1e-9):.1f} a second"
        table.add_row("faces", str(tally.faces), "", rate)
        for name, count in tally.reasons.most_common():
            table.add_row("rejected", str(count), "", name)
        return table
