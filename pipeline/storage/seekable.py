"""Files opened for reading at any place, also of servers that give them from the beginning only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync

from pipeline.storage.uris import filesystem, is_web

_COPIED = 8 << 20


@contextmanager
def opened(uri: str, block_size: int | None = None) -> Iterator[Any]:
    """A seekable reader of the file at `uri`, which reads ahead in blocks.

    A web server that does not say how long the file is, or gives no ranges of it, is asked for all
    of it once, into a temporary file. Raises what the file system does.
    """
    fs, path = filesystem(uri)
    if is_web(uri) and not _gives_ranges(fs, path):
        with tempfile.TemporaryFile() as copy:
            with fs.open(path, "rb", block_size=0) as stream:
                shutil.copyfileobj(stream, copy, _COPIED)
            copy.seek(0)
            yield copy
        return
    with fs.open(path, "rb", block_size=block_size, cache_type="readahead") as file:
        yield file


def read_start(uri: str, length: int) -> bytes:
    """The first `length` bytes of a file; of one on the web, no more than that is fetched."""
    fs, path = filesystem(uri)
    if not is_web(uri):
        return bytes(fs.cat_file(path, start=0, end=length))[:length]
    with fs.open(path, "rb", block_size=0) as stream:
        return bytes(stream.read(length))


def _gives_ranges(fs: Any, path: str) -> bool:
    """Whether the server gives a part of the file where it is asked for one, and says its size."""

    async def status() -> int:
        session = await fs.set_session()
        headers = {"Range": "bytes=0-0"}
        async with session.get(fs.encode_url(path), headers=headers, **fs.kwargs) as answer:
            return int(answer.status)

    # Other answers than these two are told by the read that follows.
    return sync(fs.loop, status) == 206 and fs.info(path)["size"] is not None
