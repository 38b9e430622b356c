"""Free ports for servers that tests start."""

from __future__ import annotations

import secrets
import socket

# Above the ports of Ray's workers (10002 to 19999), and below the kernel's ephemeral ports, which
# any client could be given before the server listens.
_FIRST, _END = 20_000, 32_768


def free_ports(count: int, *, offset: int = 0) -> list[int]:
    """Return free ports, each of which has a free port `offset` above it."""
    ports: set[int] = set()
    while len(ports) < count:
        port = _FIRST + secrets.randbelow(_END - offset - _FIRST)
        if all(_is_free(candidate) for candidate in {port, port + offset}):
            ports.add(port)
    return sorted(ports)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
