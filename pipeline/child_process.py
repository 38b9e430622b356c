"""A child process of Python, fed over a socket pair: what it does with an image ends it alone.

Why not `multiprocessing`: its spawned children import the caller's `__main__` again, which is Ray
in an actor and torch in a job, daemonic callers may have none, and they outlive a caller that is
killed.
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

TRIES = 2  # of what was out when a child died: the death may be another's doing
_END_TIMEOUT_S = 5.0  # from the end of its messages to that of the process
_KILL_TIMEOUT_S = 5.0  # from SIGKILL to the end of the process
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Child:
    """`python ARGUMENTS FD`, running, FD being its end of the socket pair; `connection` is ours.

    Sending and receiving raise `OSError` where a message stands still half-way for `patience_s`: a
    `Connection` alone would wait without end for a child that hangs there.
    """

    def __init__(self, arguments: Sequence[str], patience_s: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setblocking(True)  # whatever `socket.setdefaulttimeout` was told
            seconds, rest = divmod(patience_s, 1)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                limit = struct.pack("ll", int(seconds), int(rest * 1e6))
                ours.setsockopt(socket.SOL_SOCKET, option, limit)
            self.connection = Connection(ours.detach())
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
            self._process = subprocess.Popen(
                [sys.executable, "-P", *arguments, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the job's own output is read by machines
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def receive(self, timeout_s: float) -> Any:
        """The child's next message, which begins within `timeout_s`, else `TimeoutError`.

        Raises `EOFError` where the child ended, a plain `OSError` where it broke off its message.
        """
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return self.connection.recv()

    def how_it_ended(self) -> str:
        """The rest of a sentence that begins with the child; waits 5 s for its end at most."""
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "broke off its answer and lived on"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"died with signal {-code} ({signal.Signals(-code).name})"

    def stop(self) -> None:
        """Kill it: it holds nothing that needs an orderly end."""
        self.connection.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, where no signal reaches it
            self._process.wait(_KILL_TIMEOUT_S)
