"""Define `Sample`, an input image as bytes, and the unique keys of a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.uris import one_line, storage_errors

MAX_SAMPLE_BYTES = 1 << 30
# In UTF-8: the longest path of Linux; S3 allows 1,024. Every row of the table holds its key three
# times.
MAX_KEY_BYTES = 4096
_MAX_URI_BYTES = 2 * MAX_KEY_BYTES
_MAX_DETAIL_BYTES = 1000
_KEPT_BYTES = 200  # from the start of a text that is too long


class ShortenedKey(str):
    """Replacement of a key longer than `MAX_KEY_BYTES`: its start and its SHA-256."""

    __slots__ = ("size",)

    size: int  # bytes of the original key


@dataclass(frozen=True)
class Sample:
    """Input image as bytes, not decoded.

    `key` is its path inside the shard, unique there; `uri` says where it came from. If the bytes
    were not read, `content` is empty, `reject` is the value of the sample's `RejectReason`, and
    `detail` explains it. An empty file has empty `content` and no `reject`: the decoder refuses it.
    `fields` is a JSON object of the fields that `--keep-columns` names; empty without these.

    A sample with a `ShortenedKey` is a reject whatever its bytes are; a reason that it already has
    stays. A `uri` over 8,192 bytes and a `detail` over 1,000 bytes are shortened too: names in
    archives can have any length.
    """

    key: str
    uri: str
    content: bytes
    reject: str = ""
    detail: str = ""
    fields: str = ""

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


def _shortened(text: str, max_bytes: int) -> str:
    """Return `text`, or its start and its SHA-256 if it is longer than `max_bytes` in UTF-8.

    Different texts give different results.
    """
    if len(text) * 4 <= max_bytes:
        return text
    content = text.encode("utf-8", "surrogatepass")
    if len(content) <= max_bytes:
        return text
    kept = content[:_KEPT_BYTES].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(content).hexdigest()}"


def table_key(name: str) -> str:
    """Return the key of a sample called `name`: the name itself, or a `ShortenedKey`."""
    key = _shortened(name, MAX_KEY_BYTES)
    if key is name:
        return name
    short = ShortenedKey(key)
    short.size = len(name.encode("utf-8", "surrogatepass"))
    return short


def too_large(key: str, uri: str, size: int) -> Sample:
    """Return the reject of an image of `size` bytes, too many to be read into memory."""
    return Sample(
        key, uri, b"", "too_large", f"{size} bytes, of at most {MAX_SAMPLE_BYTES} that are read"
    )


def unreadable(key: str, uri: str, why: str) -> Sample:
    """Return the reject of a file that cannot be read, such as a dead link."""
    return Sample(key, uri, b"", "unreadable", f"cannot be read: {why}")


def report_damage(
    samples: Iterable[Sample], uri: str, damage: tuple[type[Exception], ...]
) -> Iterator[Sample]:
    """Yield the samples of the shard at `uri`, and turn errors into a `StorageError` with its name.

    Of each of the errors `damage` the message has the number of samples before it. Other errors are
    turned as `storage_errors` does.
    """
    count = 0
    with storage_errors(f"read '{uri}'"):
        try:
            for sample in samples:
                count += 1
                yield sample
        except damage as error:
            raise StorageError(
                f"the shard '{uri}' is damaged after {count} samples ({one_line(error)}); replace "
                "it and run again"
            ) from error


class UniqueKeys:
    """Make the keys of one shard unique, in the order in which they come.

    A key longer than `MAX_KEY_BYTES` becomes a `ShortenedKey`, which makes its sample a reject.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._counts: dict[str, int] = {}  # name -> last number that was appended to it

    def has(self, key: str) -> bool:
        """Return whether a sample has this key."""
        return table_key(key) in self._used

    def take(self, *candidates: str) -> str:
        """Return the first unused candidate, else the last one followed by `~2`, `~3`, ...."""
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
    """Return `name` followed by a number; a `ShortenedKey` gives a `ShortenedKey`."""
    numbered = f"{name}~{count}"
    if not isinstance(name, ShortenedKey):
        return table_key(numbered)
    short = ShortenedKey(numbered)
    short.size = name.size
    return short
