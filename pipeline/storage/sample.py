"""One input image as bytes, and the keys of a shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_SAMPLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One input image, not decoded.

    `key` is its path inside the shard, unique in it; `uri` says where it came from. Where the
    bytes were not read, `content` is empty and `reject` holds the value of the `RejectReason` that
    the sample is to get, with `detail` for a person. An empty file is a sample with empty `content`
    and no `reject`: the decoder refuses it. `fields` is a JSON object of what `--keep-columns`
    names; empty where nothing is carried over.
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


def too_large(key: str, uri: str, size: int) -> Sample:
    """A sample of `size` bytes that is not read into memory."""
    return Sample(
        key, uri, b"", "too_large", f"{size} bytes, of at most {MAX_SAMPLE_BYTES} that are read"
    )


def unreadable(key: str, uri: str, why: str) -> Sample:
    """A sample whose bytes cannot be had, as permissions or a dead link are in the way."""
    return Sample(key, uri, b"", "unreadable", f"cannot be read: {why}")


class UniqueKeys:
    """Makes the keys of one shard unique in the order in which they come."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._counts: dict[str, int] = {}  # of a name, the last number that was put behind it

    def has(self, key: str) -> bool:
        """Whether a sample has this key."""
        return key in self._used

    def take(self, *candidates: str) -> str:
        """The first candidate that is free, else the last one with `~2`, `~3`, ... behind it."""
        key = next((name for name in candidates if name not in self._used), "")
        last = candidates[-1]
        while not key:
            self._counts[last] = count = self._counts.get(last, 1) + 1
            numbered = f"{last}~{count}"
            key = "" if numbered in self._used else numbered
        self._used.add(key)
        return key
