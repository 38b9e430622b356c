"""How long a run has still to go: by its pace of late, not by that of its start."""

from __future__ import annotations

from collections import deque

# Parts that the pace is taken over: of fewer one large image shows, of more a pool that grew.
_PARTS = 32
_LEAST_S = 2.0  # two parts of one moment are no pace


def format_seconds(seconds: float) -> str:
    """`75` as `1:15`, `3700` as `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """Work done over the last parts, and how long what is left takes at that pace.

    Parts come in bursts, so that the pace is the mean over some of them, and the time left counts
    down in between. Where no part comes for longer than usual the pace falls.
    """

    def __init__(self) -> None:
        self._parts: deque[tuple[float, float]] = deque(maxlen=_PARTS)

    def part(self, seconds: float, done: float) -> None:
        """A part came at `seconds`, with which `done` is done in all."""
        self._parts.append((seconds, done))

    def _times(self, now: float) -> tuple[float, float, float] | None:
        """Work of the last parts, the seconds that it took, and those since that count as spent."""
        if len(self._parts) < 2:
            return None
        (first, begun), (last, done) = self._parts[0], self._parts[-1]
        took, since = last - first, max(0.0, now - last)
        if done <= begun or took < _LEAST_S:
            return None
        usual = took / (len(self._parts) - 1)
        return done - begun, took + max(0.0, since - usual), min(since, usual)

    def rate(self, now: float) -> float | None:
        """Work a second; None where that is not known."""
        times = self._times(now)
        return times[0] / times[1] if times else None

    def seconds_left(self, now: float, left: float | None) -> float | None:
        """Time that what is `left` takes; None where that is not known."""
        times = self._times(now)
        if times is None or left is None:
            return None
        work, took, spent = times
        return max(0.0, left * took / work - spent)
