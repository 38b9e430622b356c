"""Count of storage requests that were answered by nothing, or by a server's own error.

botocore and s3fs repeat these by themselves for a while, in silence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_SLOW_DOWN, _SERVER_ERROR = 429, 500
_lock = threading.Lock()
_count = 0
_listeners: list[Callable[[], None]] = []


def storage_retries() -> int:
    """Return how many requests of this process failed in such a way so far."""
    return _count


def on_storage_retry(listener: Callable[[], None]) -> None:
    """Have `listener` called at each, in the thread that made the request."""
    _listeners.append(listener)


def count_if_failed(
    response: tuple[Any, dict[str, Any]] | None = None,
    caught_exception: Exception | None = None,
    **_: Any,
) -> None:
    """Take one answer of botocore, or why there is none; its handler of `needs-retry`.

    Returns None, by which botocore leaves the choice to its other handlers.
    """
    global _count
    if caught_exception is None:
        status = response[0].status_code if response else 0
        if status != _SLOW_DOWN and status < _SERVER_ERROR:
            return
    with _lock:
        _count += 1
    for listener in _listeners:
        listener()
