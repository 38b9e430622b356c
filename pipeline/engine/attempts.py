"""Ends what Ray would repeat for ever: a part whose worker dies on it, again and again.

Ray repeats what a lost worker had, as often as it is lost. That is right for a node that vanished,
and endless for a part that takes its process with it (a crash below Python, the memory's end). So
each attempt leaves a note on the node's own disk for as long as it lasts: who finds several has
found such a part. Notes of a node that vanished went with it.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

# Whoever had a part at the same time is charged with it too, and workers die for other reasons.
MOST_DEATHS = 5


def _ray() -> Any:
    """Ray in a process that it started or that joined it, else None.

    Importing it here would come before `pipeline.engine.cluster` has set its environment.
    """
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


@cache
def _notes() -> Path:
    """This node's folder of notes of this job; numbers of jobs start again in each Ray session."""
    context = _ray().get_runtime_context()
    name = f"restyle-{context.get_session_name()}-{context.get_job_id()}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(exist_ok=True)
    return folder


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
    note = _notes() / hashlib.sha256(f"{stage}\0{shard_id}\0{part}".encode()).hexdigest()[:32]
    try:
        with note.open("ab") as file:
            deaths = file.tell()
            file.write(b".")
        if deaths >= MOST_DEATHS:
            raise RuntimeError(
                f"{deaths} worker processes died at it on this node, of a crash or for memory"
            )
        yield
    finally:
        note.unlink(missing_ok=True)
