"""A storage whose connection is cut in every read: `breaks://`, over what `memory://` holds."""

from __future__ import annotations

import io
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class CutOff(io.BytesIO):
    """A file that gives a few bytes and then the error of a connection that is cut."""

    def read(self, size: int | None = -1) -> bytes:
        """The first read of a few bytes, or the error."""
        if self.tell() or size is None or not 0 <= size <= 64:
            raise ConnectionResetError(104, "reset by peer")
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        """As `read`, which torch does not call everywhere."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class BreaksOff(MemoryFileSystem):
    """What `memory://` holds, in files that are cut off."""

    protocol = "breaks"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("breaks://", "memory://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return CutOff(super()._open(path, mode, **options).getvalue())


def register() -> None:
    """Make `breaks://` known to fsspec; again is no error."""
    fsspec.register_implementation("breaks", BreaksOff, clobber=True)
