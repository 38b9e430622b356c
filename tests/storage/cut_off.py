"""File system `breaks://`: the files of `memory://`, whose connection is cut in every read."""

from __future__ import annotations

import io
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class CutOff(io.BytesIO):
    """File that yields up to 64 bytes once, and then raises the error of a cut connection."""

    def read(self, size: int | None = -1) -> bytes:
        """Read up to 64 bytes at the start; raise the error for any other read."""
        if self.tell() or size is None or not 0 <= size <= 64:
            raise ConnectionResetError(104, "reset by peer")
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, which torch calls instead of `read` in some places."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class BreaksOff(MemoryFileSystem):
    """File system with the files of `memory://`, which are cut off."""

    protocol = "breaks"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("breaks://", "memory://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return CutOff(super()._open(path, mode, **options).getvalue())


def register() -> None:
    """Register `breaks://` with fsspec; calling it again is harmless."""
    fsspec.register_implementation("breaks", BreaksOff, clobber=True)
