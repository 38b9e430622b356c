"""Samples out of a tar archive, read as a stream; nothing is ever unpacked to a disk."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, cast

from pipeline.errors import StorageError
from pipeline.storage.formats import is_hidden, is_image, readable_name
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.shards import Shard
from pipeline.storage.uris import filesystem, join, one_line, storage_errors

_BLOCK = 8 << 20
_DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)
_HEADER_BYTES = 1 << 20  # of one member, with its long names and its records
_EMPTY_READS = 8  # that `tarfile` makes at an archive's honest end
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 200


class _StrictTarInfo(tarfile.TarInfo):
    """Headers that cannot be read are errors.

    `tarfile` takes a damaged header, or an archive that ends between two members, for the end
    of the archive; the samples behind it would be lost in silence.
    """

    @classmethod
    def fromtarfile(
        cls, tarfile: tarfile.TarFile
    ) -> _StrictTarInfo:  # the parameter's name is given
        source: _Source = cast(Any, tarfile.fileobj).fileobj
        try:
            with source.header():
                return super().fromtarfile(tarfile)
        except _END_OF_ARCHIVE:
            raise
        except _HEADER_ERROR as error:
            raise _READ_ERROR(f"no end-of-archive mark: {error or 'unexpected end'}") from error
        # Records with lengths, numbers or texts that are none; headers that announce headers.
        except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise _READ_ERROR(f"a header that cannot be read: {error}") from error


class _Source:
    """The archive's bytes as `tarfile` takes them, with an end to what a header can ask for.

    `tarfile` skips a member by reading to its end, although the file ended long before, and takes
    a header's records into memory whatever their size.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._empty_reads = 0
        self._header_left: int | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; `tarfile.ReadError` where the archive asks for too much."""
        block: bytes = self._stream.read(size)
        self._empty_reads += not block
        if self._empty_reads > _EMPTY_READS:
            raise tarfile.ReadError("it ends inside a member")
        if self._header_left is not None:
            self._header_left -= len(block)
            if self._header_left < 0:
                raise tarfile.ReadError(f"a header of over {_HEADER_BYTES} bytes")
        return block

    @contextmanager
    def header(self) -> Iterator[None]:
        """While a member's headers are read; the headers that they announce count in."""
        outermost = self._header_left is None
        if outermost:
            self._header_left = _HEADER_BYTES
        try:
            yield
        finally:
            if outermost:
                self._header_left = None


_READ_ERROR = tarfile.ReadError
_HEADER_ERROR = tarfile.HeaderError
_END_OF_ARCHIVE = cast(type[Exception], vars(tarfile)["EOFHeaderError"])


def read_tar(shard: Shard) -> Iterator[Sample]:
    """One sample for each regular file with an image extension, in the archive's order.

    The key is the member's path without that extension; if another member took it, the whole
    path; if that is taken too (one path stored twice), the path with `~2`, `~3`, ... behind it.
    Sidecars (`.json`, `.txt`, `.cls`, ...) and hidden files are no samples. A link with an image's
    name is a sample without content, as links are not followed.
    """
    keys = UniqueKeys()
    count = 0
    fs, path = filesystem(shard.uri)
    with storage_errors(f"read '{shard.uri}'"):
        try:
            with (
                fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as raw,
                _plain(raw) as stream,
                tarfile.open(
                    fileobj=cast(Any, _Source(stream)), mode="r|", tarinfo=_StrictTarInfo
                ) as archive,
            ):
                for member in archive:
                    sample = _sample(archive, member, keys, shard.source)
                    if sample is not None:
                        count += 1
                        yield sample
                _refuse_rest(archive.fileobj)
        except _DAMAGE as error:
            raise StorageError(
                f"the shard '{shard.uri}' is damaged after {count} samples ({one_line(error)}); "
                "replace it and run again"
            ) from error


def is_sample(member: tarfile.TarInfo) -> bool:
    """Whether a member is one by its name: an image that is not hidden."""
    name = readable_name(member.name.removeprefix("./"))
    return not member.isdir() and is_image(name) and not is_hidden(name)


def _sample(
    archive: tarfile.TarFile, member: tarfile.TarInfo, keys: UniqueKeys, shard_uri: str
) -> Sample | None:
    name = readable_name(member.name.removeprefix("./"))
    if not is_sample(member):
        return None
    key = keys.take(name[: -len(PurePosixPath(name).suffix)], name)
    uri = join(shard_uri, name)
    if not member.isfile():
        detail = f"a link to '{readable_name(member.linkname)}' or a special file, not an image"
        return Sample(key, uri, b"", "unsupported_format", detail)
    if member.size > MAX_SAMPLE_BYTES:
        return too_large(key, uri, member.size)
    file = cast(IO[bytes], archive.extractfile(member))
    return Sample(key, uri, file.read())


@contextmanager
def _plain(raw: Any) -> Iterator[Any]:
    """`raw` unpacked if it is gzip by its first bytes, whatever its name says.

    `gzip` checks the length and the checksum at the end, which `tarfile`'s own "r|gz" does not.
    """
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if not packed:
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as stream:
        yield _Unpacked(stream, raw)


class _Unpacked:
    """What a gzip unpacks to, as long as it is no bomb: deflate can grow by 1032 times."""

    def __init__(self, stream: Any, packed: Any) -> None:
        self._stream = stream
        self._packed = packed
        self._bytes = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        block: bytes = self._stream.read(size)
        self._bytes += len(block)
        if self._bytes > max(_BOMB_BYTES, _BOMB_RATIO * self._packed.tell()):
            raise tarfile.ReadError(f"it unpacks to over {_BOMB_RATIO} times its size")
        return block


def _refuse_rest(stream: Any) -> None:
    """Read to the end: a second archive behind the first one's end mark would go unread."""
    while rest := stream.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("there is data behind the end-of-archive mark")
