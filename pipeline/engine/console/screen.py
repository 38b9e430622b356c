"""stderr while a job works: whole lines and, on a terminal, a last one that is drawn in place."""

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
_WIDTH = 80  # of a terminal that does not tell


class Screen:
    """Writes to the stderr that there is when it is made, also while another one is put in place.

    What goes wrong with it (closed, full, a terminal that is gone) costs lines, never the job. From
    several threads, and from a signal handler.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fd = _duplicate(sys.stderr)
        self._width = _terminal_width(self._fd)
        self._drawn = ""  # what stands in place
        self._broken_off = False  # somebody printed half a line
        self._kept: list[tuple[str, Any, Any]] = []

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be drawn in place."""
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
        """Print a whole line, above the one that stands in place; it is blanked out before."""
        with self._lock:
            drawn, clear = self._drawn, _ERASE if self._drawn else ""
            if self._broken_off:
                self._broken_off, clear = False, "\n"
            self._write(f"{clear}{text}\n{drawn}")

    def draw(self, text: str) -> None:
        """Put `text`, cut to the width, in the place of what stands there; "": nothing.

        Does nothing where there is no terminal.
        """
        if not self.is_terminal:
            return
        with self._lock:
            room = (_terminal_width(self._fd) or _WIDTH) - 1  # a full line would begin a new one
            text = set_cell_size(text, room) if cell_len(text) > room else text
            if text != self._drawn and not self._broken_off:
                self._write(f"{_ERASE if self._drawn else ''}{text}")
            self._drawn = text

    def above(self, stream: TextIO, text: str) -> None:
        """Write `text` to a `stream` of the same terminal, above the line that stands in place."""
        with self._lock:
            drawn = self._drawn
            if drawn and not self._broken_off:
                self._write(_ERASE)
            stream.write(text)
            stream.flush()
            # `print` writes a line and its end one after another.
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
            return  # nobody looks


class _Above:
    """A stream of the terminal whose text is printed above the line that stands in place."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self._screen, self._stream = screen, stream

    def write(self, text: str) -> int:
        """As of a file."""
        self._screen.above(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _duplicate(stream: TextIO | None) -> int | None:
    """A file descriptor of the stream's own; None where it has none."""
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
    """Columns of the terminal that `fd` is; None where it is none, or one that only prints on."""
    if fd is None or not os.isatty(fd) or os.environ.get("TERM", "") in _DUMB:
        return None
    try:
        told = os.environ.get("COLUMNS", "")
        return (int(told) if told.isdecimal() else 0) or os.get_terminal_size(fd).columns or _WIDTH
    except OSError:
        return _WIDTH


def event_line(name: str, level: str = "info", **fields: Any) -> str:
    """One event as a line of JSON; what looks like a credential in a URI is left out."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = clean({"time": now, "level": level, "event": name, **fields})
    return json.dumps(line, default=str, allow_nan=False)
