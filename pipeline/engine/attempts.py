"""Ends what Ray would repeat for ever: a part whose worker dies on it, again and again.

Ray repeats what a lost worker had, as often as it is lost. That is right for a node that vanished,
and endless for a part that takes its process with it (a crash below Python, the memory's end). So
each attempt leaves a note on the node's own disk for as long as it lasts: who finds several has
found such a part. Notes of a node that vanished went with it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.engine.private_folder import is_private
from pipeline.machine import memory_limit

# Whoever had a part at the same time is charged with it too, and workers die for other reasons.
MOST_DEATHS = 5
DIED = "worker processes died at it on this node"  # by this the driver knows such a failure
_CONFIG = "restyle_notes"  # in Ray Data's context, which every worker of a run gets


def _ray() -> Any:
    """Ray in a process that it started or that joined it, else None.

    Importing it here would come before `pipeline.engine.cluster` has set its environment.
    """
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def set_notes_folder(context: Any, private: Path | None) -> None:
    """Choose where the workers of a run leave their notes, and tell them by Ray Data's `context`.

    In the run's `private` folder; without one in the temp directory of each node, under a name that
    nobody knows before it is there.
    """
    folder = str(private / "notes") if private else f"restyle-notes-{secrets.token_hex(16)}"
    context.set_config(_CONFIG, folder)


def _open_note(name: str) -> tuple[Path, int]:
    """The note called `name`, open for appending; made with its folder where they are not there."""
    from ray.data import DataContext

    told = DataContext.get_current().get_config(_CONFIG) or f"restyle-notes-{os.geteuid()}"
    folder = Path(tempfile.gettempdir(), told)
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not is_private(folder):
            raise RuntimeError(f"'{folder}' is not a folder that this user alone may enter")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):  # another worker removed the empty folder in between
            return folder / name, os.open(folder / name, flags, 0o600)


def node_address() -> str:
    """Return the address by which Ray knows this node; "" outside Ray."""
    ray = _ray()
    return "" if ray is None else str(ray.util.get_node_ip_address())


@contextmanager
def attempted(stage: str, shard_id: str, part: int) -> Iterator[None]:
    """Note an attempt at a part for the time of the block; outside Ray nothing is noted.

    Raises `RuntimeError` if workers of this job on this node died of the part before.
    """
    if _ray() is None:
        yield
        return
    name = hashlib.sha256(f"{stage}\0{shard_id}\0{part}".encode()).hexdigest()[:32]
    note, opened = _open_note(name)
    try:
        with os.fdopen(opened, "ab") as file:
            deaths = file.tell()
            file.write(b".")
        if deaths >= MOST_DEATHS:
            raise RuntimeError(
                f"{deaths} {DIED}, of a crash below Python or as "
                f"memory ran out ({memory_limit() / 1e9:.1f} GB may be used): lower "
                "--align-workers or --inverters, --batch-size, --max-pixels"
            )
        yield
    finally:
        note.unlink(missing_ok=True)
        with suppress(OSError):  # the notes of others are there
            note.parent.rmdir()
