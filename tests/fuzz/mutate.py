"""Seeded damage to bytes, as by a bad disk, a bad download or an attacker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

# Values that break length fields: zero, one, limits of signed and unsigned types.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_HEADER = 256


def mutated(draw: Random, content: bytes, *, most: int = 6) -> bytes:
    """Return `content` after one to `most` random changes, half of them in the header."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, most)):
        if not damaged:
            break
        draw.choice(_CHANGES)(draw, damaged)
    return bytes(damaged)


def place(draw: Random, length: int) -> int:
    """Return a position below `length`: near the start, near the end, or anywhere."""
    where = draw.random()
    if where < 0.5:
        return draw.randrange(min(length, _HEADER))
    if where < 0.6:
        return length - 1 - draw.randrange(min(length, 64))
    return draw.randrange(length)


def _flip(draw: Random, content: bytearray) -> None:
    content[place(draw, len(content))] ^= 1 << draw.randrange(8)


def _set(draw: Random, content: bytearray) -> None:
    content[place(draw, len(content))] = draw.randrange(256)


def _number(draw: Random, content: bytearray) -> None:
    """Write an edge value as an integer of some width and byte order."""
    width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    at = place(draw, len(content))
    value = draw.choice(_EDGES) & ((1 << 8 * width) - 1)
    content[at : at + width] = value.to_bytes(width, order)[: len(content) - at]  # type: ignore[arg-type]


def _span(draw: Random, content: bytearray) -> tuple[int, int]:
    start = place(draw, len(content))
    return start, min(len(content), start + draw.randint(1, draw.choice((4, 64, 1024))))


def _delete(draw: Random, content: bytearray) -> None:
    start, end = _span(draw, content)
    del content[start:end]


def _repeat(draw: Random, content: bytearray) -> None:
    start, end = _span(draw, content)
    content[end:end] = content[start:end] * draw.choice((1, 1, 2, 16))


def _noise(draw: Random, content: bytearray) -> None:
    start, end = _span(draw, content)
    content[start:end] = draw.randbytes(end - start)


def _blank(draw: Random, content: bytearray) -> None:
    start, end = _span(draw, content)
    content[start:end] = draw.choice((b"\0", b"\xff")) * (end - start)


def _cut(draw: Random, content: bytearray) -> None:
    if draw.random() < 0.4:
        del content[draw.randrange(len(content)) :]


def _swap(draw: Random, content: bytearray) -> None:
    start, end = _span(draw, content)
    at = draw.randrange(len(content))
    content[at : at + end - start] = content[start:end]


_CHANGES: Sequence[Callable[[Random, bytearray], None]] = (
    *(_flip, _set, _set, _number, _number),
    *(_delete, _repeat, _noise, _blank, _cut, _swap),
)
