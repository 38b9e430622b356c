"""Ports for servers that tests start."""

from __future__ import annotations

import secrets
import socket

# Above Ray's for workers (10002 to 19999), and below those that the kernel gives to whoever asks
# for any, each client among them: one of these may be taken before its server listens.
_FIRST, _END = 20_000, 32_768


def free_ports(count: int, *, beside: int = 0) -> list[int]:
    """Different ports that are free, and of which the one `beside` higher is free as well."""
    found: set[int] = set()
    while len(found) < count:
        port = _FIRST + secrets.randbelow(_END - beside - _FIRST)
        if all(_is_free(one) for one in {port, port + beside}):
            found.add(port)
    return sorted(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
