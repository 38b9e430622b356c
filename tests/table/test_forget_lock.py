"""One forget at a time writes to a table; the lock of a dead one is taken over."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from pipeline.errors import RequestError
from pipeline.storage import Store
from pipeline.table.forgetting.forget_lock import LOCK_NAME, SILENT_S, ForgetLock


def lock_of(store: Store, host: str, pid: object, *, age: float = 0.0) -> bytes:
    """Write the lock of another process, refreshed `age` seconds ago; return its content."""
    content = json.dumps({"host": host, "pid": pid, "id": "other"}).encode()
    store.put(LOCK_NAME, content)
    moment = time.time() - age
    os.utime(store.path(LOCK_NAME), (moment, moment))
    return content


def test_a_second_forget_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ForgetLock(store), pytest.raises(RequestError, match="another forget is running"):
        ForgetLock(store).__enter__()
    assert store.names() == []


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_the_clock_of_this_machine_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    store, own = Store(str(tmp_path)), time.time
    lock_of(store, "elsewhere", 1)
    monkeypatch.setattr(time, "time", lambda: own() + ahead)
    with pytest.raises(RequestError, match=r"process 1 on elsewhere"):
        ForgetLock(store).__enter__()
    lock_of(store, "elsewhere", 1, age=SILENT_S + ahead + 5)
    with ForgetLock(store):
        assert store.names() == [LOCK_NAME]


@pytest.mark.parametrize("pid", [2**80, None])
def test_an_unknown_process_counts_as_alive(tmp_path: Path, pid: object) -> None:
    store = Store(str(tmp_path))
    lock_of(store, socket.gethostname(), pid)
    with pytest.raises(RequestError, match="another forget is running"):
        ForgetLock(store).__enter__()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    lock_of(store, socket.gethostname(), 2**22 + 1)  # above the largest id of Linux
    with ForgetLock(store):
        assert json.loads(store.get(LOCK_NAME))["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_damaged_lock_is_taken_over(tmp_path: Path, content: bytes) -> None:
    store = Store(str(tmp_path))
    store.put(LOCK_NAME, content)
    with ForgetLock(store):
        assert json.loads(store.get(LOCK_NAME))["pid"] == os.getpid()


def test_a_lock_that_was_taken_over_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ForgetLock(store):
        others = lock_of(store, "elsewhere", 1)
    assert store.get(LOCK_NAME) == others
