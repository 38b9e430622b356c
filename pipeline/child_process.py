"""Child process of Python with a socket pair: an image that crashes it ends only the child.

`multiprocessing` is unsuitable: its spawned children import the caller's `__main__` again (Ray in
an actor, torch in a job), daemonic callers may not have children, and children outlive a caller
that is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

TRIES = 2  # for a request in progress when a child died: another one may be the cause
_END_TIMEOUT_S = 5.0  # from the end of its messages to the end of the process
_KILL_TIMEOUT_S = 5.0  # from SIGKILL to the end of the process
# Freed buffers stay with the child, on large pages: returned to the kernel and faulted in again,
# those of each image cost a ninth of its time. Other C libraries than glibc ignore this.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=268435456"
}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Child:
    """Running child `python ARGUMENTS FD`: FD is its end of a socket pair, `connection` the other.

    Sending and receiving raise `OSError` if a message makes no progress for `patience_s`; a
    `Connection` alone would wait forever for a child that hangs in the middle of one.
    """

    def __init__(self, arguments: Sequence[str], patience_s: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setblocking(True)  # regardless of `socket.setdefaulttimeout`
            seconds, rest = divmod(patience_s, 1)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                limit = struct.pack("ll", int(seconds), int(rest * 1e6))
                ours.setsockopt(socket.SOL_SOCKET, option, limit)
            self.connection = Connection(ours.detach())
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
            self._process = subprocess.Popen(
                [sys.executable, "-P", *arguments, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the job's own stdout is machine-readable
                pass_fds=[theirs.fileno()],
                env={**ALLOCATOR, **os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                start_new_session=True,  # the parent handles Ctrl-C
            )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def receive(self, timeout_s: float) -> Any:
        """Return the child's next message; raise `TimeoutError` if none begins within `timeout_s`.

        Raises `EOFError` if the child ended, and a plain `OSError` if its message is incomplete.
        """
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return self.connection.recv()

    def how_it_ended(self) -> str:
        """Return how the child ended, as text after "the child"; waits 5 s at most."""
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "broke off its answer and lived on"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"died with signal {-code} ({signal.Signals(-code).name})"

    def stop(self) -> None:
        """Kill the child; it has no state that needs a clean shutdown."""
        self.connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, out of reach of signals
            self._process.wait(_KILL_TIMEOUT_S)
