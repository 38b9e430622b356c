"""Child process of `IsolatedAligner`: align one image, send the outcome, wait for the next image.

Run as `python -m pipeline.alignment.worker_main FD`; FD is its end of a socket pair.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pipeline.images import Rejection, RejectReason

if TYPE_CHECKING:
    from pipeline.alignment.settings import AlignmentSettings
    from pipeline.alignment.worker import Outcome, RowAligner

# A child whose parent has died ends itself this long after the row timeout.
_ORPHAN_MARGIN_S = 5.0


def serve(connection: Connection) -> None:
    """Build the aligner of the first message, then answer images until the parent ends."""
    try:
        settings, factory = connection.recv()
        _set_limits(settings)
        aligner = factory(settings)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - the parent reports any error in one line
        connection.send(_in_one_line(error))
        return
    # libtiff and libjpeg print a line for each damaged file, which the rejects table records.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection.send(None)
    try:
        while True:
            content = connection.recv_bytes()
            connection.send(_outcome(aligner, content, settings))
    except (EOFError, ConnectionError):  # the parent closed its end, or was killed
        return


def _set_limits(settings: AlignmentSettings) -> None:
    # Crashes are expected here: do not write a core file of a gigabyte for each.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings.memory_limit_mib:
        limit = settings.memory_limit_mib << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # SIGALRM's default action ends the process even inside C code.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def _outcome(aligner: RowAligner, content: bytes, settings: AlignmentSettings) -> Outcome:
    signal.setitimer(signal.ITIMER_REAL, settings.row_timeout_s + _ORPHAN_MARGIN_S)
    try:
        return aligner.align(content)
    except Rejection as rejection:
        return rejection
    except MemoryError:
        return Rejection(
            RejectReason.CRASHED, f"needs more memory than {settings.memory_limit_mib} MiB"
        )
    except Exception as error:  # noqa: BLE001 - one image must not affect the others
        return Rejection(RejectReason.CRASHED, _in_one_line(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _in_one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].name}, line {frames[-1].lineno})" if frames else text


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
