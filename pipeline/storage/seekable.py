"""Open files for reading at any position, also from web servers that give no ranges."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync

from pipeline.storage.uris import filesystem, is_web

_COPY_BLOCK = 8 << 20


@contextmanager
def open_seekable(uri: str, block_size: int | None = None) -> Iterator[Any]:
    """Open the file at `uri` as a seekable reader that reads ahead in blocks.

    From a web server that gives no ranges, or does not report the size, the whole file is copied
    once to a temporary file. Raises the errors of the file system.
    """
    fs, path = filesystem(uri)
    if is_web(uri) and not _gives_ranges(fs, path):
        with tempfile.TemporaryFile() as copy:
            with fs.open(path, "rb", block_size=0) as stream:
                shutil.copyfileobj(stream, copy, _COPY_BLOCK)
            copy.seek(0)
            yield copy
        return
    with fs.open(path, "rb", block_size=block_size, cache_type="readahead") as file:
        yield file


def _gives_ranges(fs: Any, path: str) -> bool:
    """Return whether the web server supports ranges of this file and reports its size."""

    async def status() -> int:
        session = await fs.set_session()
        headers = {"Range": "bytes=0-0"}
        async with session.get(fs.encode_url(path), headers=headers, **fs.kwargs) as answer:
            return int(answer.status)

    # Errors are reported by the read that follows.
    return sync(fs.loop, status) == 206 and fs.info(path)["size"] is not None
