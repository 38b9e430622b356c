"""Actions of the proxy on a request."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable

from tests.faults.proxy import Action, Exchange

_NAMES = {
    403: "AccessDenied",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
    507: "InsufficientStorage",
}
_CONDITION = re.compile(rb"\r\nif-none-match:[^\r]*", re.IGNORECASE)


def error(status: int) -> Action:
    """Answer with an S3 error and do not forward the request."""
    name = _NAMES[status]
    xml = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>on purpose</Message></Error>"
    head = (
        f"HTTP/1.1 {status} {name}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(xml)}\r\nConnection: close\r\n\r\n"
    )

    async def act(exchange: Exchange) -> None:
        await exchange.send(head.encode() + (b"" if exchange.method == "HEAD" else xml.encode()))

    return act


def refusing(status: int, code: str) -> Action:
    """Answer as S3 does to invalid credentials: with a reason, except to HEAD requests."""
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nConnection: close\r\n"

    async def act(exchange: Exchange) -> None:
        body = b"" if exchange.method == "HEAD" else xml.encode()
        await exchange.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    return act


def slow(seconds: float) -> Action:
    """Forward the request and send the answer after `seconds`."""

    async def act(exchange: Exchange) -> None:
        answer = await exchange.forward()
        await asyncio.sleep(seconds)
        await exchange.send(answer)

    return act


async def reset_before(exchange: Exchange) -> None:
    """Drop the connection; the server never saw the request."""
    exchange.reset()


async def reset_after(exchange: Exchange) -> None:
    """Let the server do what was asked, and drop the connection in place of its answer."""
    await exchange.forward()
    exchange.reset()


async def truncated(exchange: Exchange) -> None:
    """Give the head and half the body of the answer, then end the connection."""
    head, _, body = (await exchange.forward()).partition(b"\r\n\r\n")
    if not body:
        exchange.reset()
        return
    await exchange.send(head + b"\r\n\r\n" + body[: len(body) // 2])


def unconditional(put: Callable[[str, bytes], None]) -> Action:
    """Ignore If-None-Match, by calling `put(bucket/key, body)` whether or not the object exists.

    The signature covers the condition, so the header cannot simply be removed.
    """

    async def act(exchange: Exchange) -> None:
        if not _CONDITION.search(exchange.head):
            await exchange.send(await exchange.forward())
            return
        await asyncio.to_thread(put, exchange.path.partition("?")[0].lstrip("/"), exchange.body)
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    return act


async def refuse_condition(exchange: Exchange) -> None:
    """Be a store that knows no If-None-Match and says so."""
    if _CONDITION.search(exchange.head):
        await error(501)(exchange)
    else:
        await exchange.send(await exchange.forward())


def hold(until: threading.Event, arrived: threading.Event) -> Action:
    """Hold the request until `until` is set, then forward it, even if its client has gone."""

    async def act(exchange: Exchange) -> None:
        while not until.is_set():
            await asyncio.sleep(0.02)
        try:
            answer = await exchange.forward()
        finally:
            arrived.set()
        await exchange.send(answer)

    return act


def calling(then: Callable[[], None], *, after: bool) -> Action:
    """Call `then` (a kill) before the server receives the request, or after."""

    async def act(exchange: Exchange) -> None:
        if after:
            answer = await exchange.forward()
            await asyncio.to_thread(then)
        else:
            await asyncio.to_thread(then)
            answer = await exchange.forward()
        await exchange.send(answer)

    return act


def without_entries(pattern: str) -> Action:
    """Answer a listing without the matching objects, like a store with delayed listings."""

    async def act(exchange: Exchange) -> None:
        head, _, body = (await exchange.forward()).partition(b"\r\n\r\n")
        entries = re.compile(rb"<Contents>(?:(?!</Contents>).)*</Contents>", re.DOTALL)
        late = re.compile(rb"<Key>[^<]*" + pattern.encode())
        body = entries.sub(lambda entry: b"" if late.search(entry[0]) else entry[0], body)
        head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
        await exchange.send(head + b"\r\n\r\n" + body)

    return act
