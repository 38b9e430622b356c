"""stderr of a running job: whole lines and, on a terminal, a status line that is drawn in place."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from pipeline.redaction import clean

_DUMB = ("", "dumb", "unknown")
_ERASE = "\r\x1b[K"  # the line that the cursor is on
_WIDTH = 80  # columns of a terminal that does not report them


class Screen:
    """Writes to the stderr of the time when it is created, even if `sys.stderr` is replaced later.

    An error of stderr (closed, disk full, terminal gone) loses lines, but never stops the job. Safe
    to call from several threads and from a signal handler.
    """

    def __init__(self, *, draws: bool) -> None:
        self._lock = threading.RLock()
        self._fd = _duplicate(sys.stderr)
        self._width = _terminal_width(self._fd) if draws else None
        self._drawn = ""  # the status line
        self._broken_off = False  # other code printed a line without its end
        self._kept: list[tuple[str, Any, Any]] = []

    @property
    def is_terminal(self) -> bool:
        """Return whether a line can be drawn in place."""
        return self._width is not None

    def __enter__(self) -> Screen:
        if self.is_terminal:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if stream is not None and _is_terminal(stream):
                    above = _Above(self, stream)
                    self._kept.append((name, stream, above))
                    setattr(sys, name, above)
        return self

    def __exit__(self, *_: object) -> None:
        self.draw("")
        for name, stream, above in self._kept:
            if getattr(sys, name) is above:
                setattr(sys, name, stream)
        self._kept.clear()
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = self._width = None

    def say(self, text: str) -> None:
        """Print a whole line above the status line, which is erased and drawn again."""
        with self._lock:
            drawn, clear = self._drawn, _ERASE if self._drawn else ""
            if self._broken_off:
                self._broken_off, clear = False, "\n"
            self._write(f"{clear}{text}\n{drawn}")

    def draw(self, text: str) -> None:
        """Replace the status line by `text`, cut to the terminal's width; "" erases it.

        Does nothing without a terminal.
        """
        if not self.is_terminal:
            return
        with self._lock:
            width = (_terminal_width(self._fd) or _WIDTH) - 1  # a full line would wrap
            text = set_cell_size(text, width) if cell_len(text) > width else text
            if text != self._drawn and not self._broken_off:
                self._write(f"{_ERASE if self._drawn else ''}{text}")
            self._drawn = text

    def above(self, stream: TextIO, text: str) -> None:
        """Write `text` to a `stream` of the same terminal, above the status line."""
        with self._lock:
            drawn = self._drawn
            if drawn and not self._broken_off:
                self._write(_ERASE)
            stream.write(text)
            stream.flush()
            # `print` writes a line and its line end in two calls.
            self._broken_off = not text.endswith("\n") if text else self._broken_off
            if drawn and not self._broken_off:
                self._write(drawn)

    def _write(self, text: str) -> None:
        try:
            if self._fd is None:
                print(text, end="", file=sys.stderr, flush=True)
                return
            rest = text.encode("utf-8", "replace")
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except (OSError, ValueError, AttributeError):
            return  # stderr is gone


class _Above:
    """Stream of the terminal whose text is printed above the status line."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self._screen, self._stream = screen, stream

    def write(self, text: str) -> int:
        """Write `text` as a file does; returns its length."""
        self._screen.above(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _duplicate(stream: TextIO | None) -> int | None:
    """Return a duplicate of the stream's file descriptor; None if it has none."""
    try:
        return None if stream is None else os.dup(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _terminal_width(fd: int | None) -> int | None:
    """Return the columns of the terminal `fd`; None if it is not one that can redraw a line."""
    if fd is None or not os.isatty(fd) or os.environ.get("TERM", "") in _DUMB:
        return None
    try:
        columns = os.environ.get("COLUMNS", "")
        return (
            (int(columns) if columns.isdecimal() else 0)
            or os.get_terminal_size(fd).columns
            or _WIDTH
        )
    except OSError:
        return _WIDTH


def event_line(name: str, level: str = "info", **fields: Any) -> str:
    """Return one event as a line of JSON, without credentials."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = clean({"time": now, "level": level, "event": name, **fields})
    return json.dumps(line, default=str, allow_nan=False)
