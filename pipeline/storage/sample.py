"""One input image as bytes, and the keys of a shard."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

MAX_SAMPLE_BYTES = 1 << 30
# Of a key in UTF-8: Linux's longest path; S3 ends at 1,024. Every row holds its key three times.
MAX_KEY_BYTES = 4096
_MAX_URI_BYTES = 2 * MAX_KEY_BYTES
_MAX_DETAIL_BYTES = 1000
_KEPT_BYTES = 200  # of the beginning of a text that is too long


class ShortenedKey(str):
    """What stands for a key of more than `MAX_KEY_BYTES`: its beginning and its SHA-256."""

    __slots__ = ("size",)

    size: int  # bytes of the key


@dataclass(frozen=True)
class Sample:
    """One input image, not decoded.

    `key` is its path inside the shard, unique in it; `uri` says where it came from. Where the
    bytes were not read, `content` is empty and `reject` holds the value of the `RejectReason` that
    the sample is to get, with `detail` for a person. An empty file is a sample with empty `content`
    and no `reject`: the decoder refuses it. `fields` is a JSON object of what `--keep-columns`
    names; empty where nothing is carried over.

    One whose key had to be shortened is a reject, whatever its bytes are; a reason that it had
    stays. A `uri` over 8,192 bytes
    and a `detail` over 1,000 are shortened too: names out of archives have no end.
    """

    key: str
    uri: str
    content: bytes
    reject: str = ""
    detail: str = ""
    fields: str = ""

    def with_key(self, key: str, fields: str) -> Sample:
        """The same image under its key, with the fields that travel with it."""
        return replace(self, key=key, fields=fields)

    def __post_init__(self) -> None:
        if isinstance(self.key, ShortenedKey) and not self.reject:
            detail = f"a key of {self.key.size} bytes, of at most {MAX_KEY_BYTES} that are kept"
            self._set(content=b"", reject="key_too_long", detail=detail)
        self._set(
            uri=_shortened(self.uri, _MAX_URI_BYTES),
            detail=_shortened(self.detail, _MAX_DETAIL_BYTES),
        )

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _shortened(text: str, longest: int) -> str:
    """`text`, or of one of more bytes in UTF-8 the beginning and the SHA-256: different texts give
    different ones.
    """
    if len(text) * 4 <= longest:
        return text
    content = text.encode("utf-8", "surrogatepass")
    if len(content) <= longest:
        return text
    kept = content[:_KEPT_BYTES].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(content).hexdigest()}"


def table_key(name: str) -> str:
    """The key of a sample called `name`: the name itself, or a `ShortenedKey` for it."""
    key = _shortened(name, MAX_KEY_BYTES)
    if key is name:
        return name
    short = ShortenedKey(key)
    short.size = len(name.encode("utf-8", "surrogatepass"))
    return short


def too_large(key: str, uri: str, size: int) -> Sample:
    """A sample of `size` bytes that is not read into memory."""
    return Sample(
        key, uri, b"", "too_large", f"{size} bytes, of at most {MAX_SAMPLE_BYTES} that are read"
    )


def unreadable(key: str, uri: str, why: str) -> Sample:
    """A sample whose bytes cannot be had, as permissions or a dead link are in the way."""
    return Sample(key, uri, b"", "unreadable", f"cannot be read: {why}")


class UniqueKeys:
    """Makes the keys of one shard unique in the order in which they come.

    One of more than `MAX_KEY_BYTES` becomes a `ShortenedKey`, which makes its sample a reject.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._counts: dict[str, int] = {}  # of a name, the last number that was put behind it

    def has(self, key: str) -> bool:
        """Whether a sample has this key."""
        return table_key(key) in self._used

    def take(self, *candidates: str) -> str:
        """The first candidate that is free, else the last one with `~2`, `~3`, ... behind it."""
        names = [table_key(name) for name in candidates]
        key = next((name for name in names if name not in self._used), "")
        last = names[-1]
        while not key:
            self._counts[last] = count = self._counts.get(last, 1) + 1
            numbered = _numbered(last, count)
            key = "" if numbered in self._used else numbered
        self._used.add(key)
        return key


def _numbered(name: str, count: int) -> str:
    """`name` with a number behind it; of a shortened one it stays known that it is."""
    numbered = f"{name}~{count}"
    if not isinstance(name, ShortenedKey):
        return table_key(numbered)
    short = ShortenedKey(numbered)
    short.size = name.size
    return short
