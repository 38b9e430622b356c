"""Count the S3 requests that got no answer, or a server error.

botocore and s3fs silently repeat these for a while.
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
    """Return the number of requests of this process that failed and were repeated."""
    return _count


def on_storage_retry(listener: Callable[[], None]) -> None:
    """Call `listener` at each such failure, in the thread that made the request."""
    _listeners.append(listener)


def count_if_failed(
    response: tuple[Any, dict[str, Any]] | None = None,
    caught_exception: Exception | None = None,
    **_: Any,
) -> None:
    """Count an answer of botocore that is an error, or a missing answer.

    A handler of botocore's event `needs-retry`. It returns None, so that botocore's other handlers
    decide whether to retry.
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
