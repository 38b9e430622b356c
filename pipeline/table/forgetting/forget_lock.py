"""Lock of a table, which keeps two forgets from changing the same manifests."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from contextlib import suppress
from typing import Any, Self

from pipeline.errors import PipelineError, RequestError, StorageError, TableError
from pipeline.storage import Store
from pipeline.table.spec import read_json

LOCK_NAME = "_forgotten/lock"
REFRESH_S = 15.0
SILENT_S = 60.0  # after this time without a refresh its holder counts as dead
_HELD: set[str] = set()  # ids of the locks that this process holds


class ForgetLock:
    """Lock that its holder refreshes; that of a dead process is taken over.

    A dead process is recognised at once on its own machine, and elsewhere by a minute of silence.
    Without conditional puts in the storage, two that start in the same moment may both hold it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.id = secrets.token_hex(8)
        self._content = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "id": self.id}
        ).encode()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Self:
        if not self.store.put_if_absent(LOCK_NAME, self._content):
            self._require_dead_holder()
            self.store.put(LOCK_NAME, self._content)
        _HELD.add(self.id)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        _HELD.discard(self.id)
        with suppress(PipelineError):  # it is taken over after a minute
            if self._is_ours():
                self.store.remove(LOCK_NAME)

    def _is_ours(self) -> bool:
        """Return whether the stored lock is this one: after a long pause another may hold it."""
        return self.store.get(LOCK_NAME) == self._content

    def _require_dead_holder(self) -> None:
        try:
            holder = read_json(self.store, LOCK_NAME)
            silence = self._storage_time() - self.store.info(LOCK_NAME).modified
        except TableError:
            return  # it is damaged
        except StorageError:
            if self.store.exists(LOCK_NAME):
                raise
            return  # it was released
        if silence < SILENT_S and not _is_dead(holder):
            host, pid = holder.get("host"), holder.get("pid")
            raise RequestError(
                f"another forget is running on the table '{self.store.root}' (process {pid} on "
                f"{host}): wait for its end; if it was killed, try again in a minute"
            )

    def _storage_time(self) -> float:
        """Return the present time by the clock of the storage, which also dates the lock."""
        probe = f"{LOCK_NAME}-{self.id}"
        self.store.put(probe, b"")
        try:
            return self.store.info(probe).modified
        finally:
            self.store.remove(probe)

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH_S):
            with suppress(PipelineError):
                if self._is_ours():
                    self.store.put(LOCK_NAME, self._content)


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder of a lock was a process of this machine that has ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return holder.get("id") not in _HELD
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it belongs to another user, or no process can have this number
    return False
