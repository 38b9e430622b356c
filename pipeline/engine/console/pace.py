"""Remaining time of a run, from its recent pace."""

from __future__ import annotations

from collections import deque

# Number of last parts in the mean: fewer show one large image, more show a pool before it grew.
_PARTS = 32
_MIN_S = 2.0  # parts that arrive together give no pace


def format_seconds(seconds: float) -> str:
    """Return seconds as minutes and hours: `75` as `1:15`, `3700` as `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """Recent pace of a run, and the time that the remaining work takes at it.

    Parts arrive in bursts, so the pace is a mean over the last ones, and the remaining time counts
    down in between. If no part arrives for longer than usual, the pace falls.
    """

    def __init__(self) -> None:
        self._parts: deque[tuple[float, float]] = deque(maxlen=_PARTS)

    def part(self, seconds: float, done: float) -> None:
        """Add a part that arrived at `seconds` and brought the total work to `done`."""
        self._parts.append((seconds, done))

    def _times(self, now: float) -> tuple[float, float, float] | None:
        """Return (work of the last parts, its seconds, seconds since then to subtract)."""
        if len(self._parts) < 2:
            return None
        (first, initial), (last, done) = self._parts[0], self._parts[-1]
        took, since = last - first, max(0.0, now - last)
        if done <= initial or took < _MIN_S:
            return None
        usual = took / (len(self._parts) - 1)
        return done - initial, took + max(0.0, since - usual), min(since, usual)

    def rate(self, now: float) -> float | None:
        """Return the work per second; None while unknown."""
        times = self._times(now)
        return times[0] / times[1] if times else None

    def seconds_left(self, now: float, left: float | None) -> float | None:
        """Return the seconds that the remaining work `left` takes; None while unknown."""
        times = self._times(now)
        if times is None or left is None:
            return None
        work, took, spent = times
        return max(0.0, left * took / work - spent)
