"""Child process with any script; its two users have tests of their own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline import child_process
from pipeline.child_process import Child
from tests.child_processes import is_running

OPENING = """
import json, os, signal, sys, time
from multiprocessing.connection import Connection
theirs = Connection(int(sys.argv[1]))
"""


@contextmanager
def running(script: str, patience_s: float = 60) -> Iterator[Child]:
    child = Child(["-c", OPENING + script], patience_s)
    try:
        yield child
    finally:
        child.stop()


def test_messages_ignore_the_default_socket_timeout() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.001)
    try:
        with running("theirs.send(len(theirs.recv()))") as child:
            child.connection.send(b"x" * 5_000_000)
            assert child.receive(60) == 5_000_000
    finally:
        socket.setdefaulttimeout(before)


def test_child_has_one_thread_and_its_own_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    script = """
import pipeline
theirs.send([os.environ["OMP_NUM_THREADS"], pipeline.__file__, os.getsid(0), os.getpid()])
"""
    with running(script) as child:
        threads, module, session, pid = child.receive(60)
        assert (threads, session, pid) == ("1", child.pid, child.pid)
        assert module == child_process.__file__.replace("child_process", "__init__")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "died with signal 15 (SIGTERM)"),
    ],
)
def test_exit_of_a_child_is_described(script: str, says: str) -> None:
    with running(script) as child:
        with pytest.raises(EOFError):
            child.receive(60)
        assert child.how_it_ended() == says


def test_missing_answer_raises_after_the_timeout() -> None:
    with running("time.sleep(600)") as child, pytest.raises(TimeoutError):
        child.receive(0.1)


@pytest.mark.parametrize("end", ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_incomplete_answer_raises_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(child_process, "_END_TIMEOUT_S", 0.2)
    script = r"os.write(theirs.fileno(), b'\0\0\1\0half');" + end
    with running(script, patience_s=0.5) as child:
        with pytest.raises(BlockingIOError):
            child.receive(60)
        assert child.how_it_ended() == "broke off its answer and lived on"
        assert is_running(child.pid)
    assert not is_running(child.pid)


def test_unread_message_raises_after_the_timeout() -> None:
    with running("time.sleep(600)", patience_s=0.5) as child:
        started = time.monotonic()
        with pytest.raises(BlockingIOError):
            child.connection.send(b"x" * 5_000_000)
        assert time.monotonic() - started < 30


def test_stop_kills_a_child_that_ignores_signals() -> None:
    with running(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); theirs.send(1); time.sleep(600)"
    ) as child:
        child.receive(60)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
