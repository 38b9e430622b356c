"""Proxy in front of an S3 server that breaks requests on purpose, at a chosen moment.

One request per connection, forwarded byte by byte with the original headers: signature version 4
covers the Host header, so the server must see the name that the client used.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

_HEAD_END = b"\r\n\r\n"
_MAX_HEAD = 1 << 20
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Exchange:
    """Exchange of one request and its answer, which an action sends, truncates or drops."""

    method: str
    path: str  # unquoted, with the query
    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    upstream: tuple[str, int]

    async def forward(self) -> bytes:
        """Pass the request on; the whole answer of the server."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(self.head + self.body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def send(self, answer: bytes) -> None:
        """Give the client `answer`, headers and all."""
        self.writer.write(answer)
        await self.writer.drain()

    def reset(self) -> None:
        """Drop the connection with a TCP reset, like a server that crashes."""
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Action = Callable[[Exchange], Awaitable[None]]


@dataclass
class Rule:
    """Selection of requests for an action: of those that match, `times` after the first `skip`."""

    method: str
    path: str  # a pattern to search for
    action: Action
    skip: int = 0
    times: int = 1
    matched: int = field(default=0, init=False)
    hit: threading.Event = field(default_factory=threading.Event, init=False)

    def takes(self, exchange: Exchange) -> bool:
        """Count the request if it matches; return whether the action applies to it."""
        if not re.fullmatch(self.method, exchange.method) or not re.search(
            self.path, exchange.path
        ):
            return False
        self.matched += 1
        acts = self.skip < self.matched <= self.skip + self.times
        if acts:
            self.hit.set()
        return acts


class FaultProxy:
    """Proxy with its `url`, and the rules that apply at present."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.requests = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Endpoint for clients."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def breaking(self, *rules: Rule) -> Iterator[None]:
        """Apply `rules` inside the block; the first that takes a request wins."""
        self.rules = [*rules]
        try:
            yield
        finally:
            self.rules = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            exchange = await self._read(reader, writer)
            self.requests += 1
            rule = next((rule for rule in self.rules if rule.takes(exchange)), None)
            if rule:
                await rule.action(exchange)
            else:
                await exchange.send(await exchange.forward())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, for example because it was killed
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
        head = await reader.readuntil(_HEAD_END)
        first, *lines = head[: -len(_HEAD_END)].split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, value in (line.split(b":", 1) for line in lines)
        }
        if headers.get(b"expect"):
            writer.write(_CONTINUE)
        if headers.get(b"transfer-encoding") == b"chunked":
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        ours = (b"connection:", b"expect:")  # not covered by the signature
        kept = [line for line in lines if not line.lower().startswith(ours)]
        sent = b"\r\n".join([first, *kept, b"Connection: close"]) + _HEAD_END
        method, path, _ = first.decode("latin-1").split(" ", 2)
        return Exchange(method, unquote(path), sent, body, writer, self.upstream)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it came, frame and all."""
    body = b""
    while True:
        size = await reader.readline()
        rest = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
        body += size + rest
        if rest == b"\r\n":
            return body


@contextmanager
def running_proxy(upstream: tuple[str, int]) -> Iterator[FaultProxy]:
    """Run a proxy to `upstream` (host, port), with its own port and thread."""
    proxy = FaultProxy(upstream)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncio.start_server(proxy.handle, "127.0.0.1", 0, limit=_MAX_HEAD)
    )
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    connections = asyncio.all_tasks() - {asyncio.current_task()}
    for task in connections:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*connections, return_exceptions=True)
