"""What Ray itself prints: kept out of the user's sight, and found where something failed.

Ray tells of each worker that ends (`(raylet) A worker died ...`, on stdout), of tasks that it
repeats, and of failures with hundreds of lines of its own. What of it is the user's news, the run
says; all of it is in a file beside Ray's other logs, or on the terminal with `RESTYLE_RAY_LOG=1`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

VARIABLE = "RESTYLE_RAY_LOG"


def is_shown() -> bool:
    """Whether the user asked for Ray's own lines."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def log_folder() -> str | None:
    """The folder of the logs of the Ray that runs here; None where there is none."""
    from ray._private import worker

    return None if worker._global_node is None else str(worker._global_node.get_logs_dir_path())


@contextmanager
def kept_in_file() -> Iterator[None]:
    """Write what Ray prints in this process to a file beside its other logs.

    Nothing is changed where no Ray runs, or its lines are to be shown.
    """
    from ray._private import worker

    folder = log_folder()
    if folder is None or is_shown():
        yield
        return
    handler = _handler(folder)
    printing, worker.print_to_stdstream = worker.print_to_stdstream, _printer(handler)
    removed = list(_take_consoles(handler))
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
        for logger, console in removed:
            logger.removeHandler(handler)
            logger.addHandler(console)
        handler.close()


def _handler(folder: str) -> logging.Handler:
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):  # a cluster's folder that belongs to somebody else
        handler = logging.FileHandler(Path(folder, f"restyle-{os.getpid()}.log"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _printer(handler: logging.Handler) -> Any:
    """What takes the place of Ray's own printing of the lines of other processes."""

    def write(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data["lines"]:
            text = f"({data.get('pid')}) {line}"
            handler.handle(logging.LogRecord("ray", logging.ERROR, "", 0, text, None, None))

    return write


def _take_consoles(handler: logging.Handler) -> Iterator[tuple[logging.Logger, logging.Handler]]:
    """Put `handler` in the place of each console of Ray's loggers; gives what was taken."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "ray"]
    for logger in map(logging.getLogger, names):
        for console in [*logger.handlers]:
            is_console = isinstance(console, logging.StreamHandler)
            if is_console and not isinstance(console, logging.FileHandler):
                logger.removeHandler(console)
                logger.addHandler(handler)
                yield logger, console
