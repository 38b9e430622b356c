"""Samples out of a tar archive, read as a stream; nothing is ever unpacked to a disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, cast

from pipeline.errors import StorageError
from pipeline.storage.formats import is_hidden, is_image, readable_name
from pipeline.storage.left_out import LeftOut
from pipeline.storage.options import ReadOptions
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, UniqueKeys, too_large
from pipeline.storage.shards import Shard
from pipeline.storage.strict_tar import DAMAGE, open_tar
from pipeline.storage.uris import join, one_line, storage_errors


def read_tar(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """One sample for each regular file with an image extension, in the archive's order.

    The key is the member's path without that extension; if another member took it, the whole
    path; if that is taken too (one path stored twice), the path with `~2`, `~3`, ... behind it.
    Sidecars (`.json`, `.txt`, `.cls`, ...) and hidden files are no samples, but are counted in
    `left_out`. A link with an image's
    name is a sample without content, as links are not followed.
    """
    del options  # of members without a known extension nothing is read
    keys = UniqueKeys()
    count = 0
    with storage_errors(f"read '{shard.uri}'"):
        try:
            with open_tar(shard.uri) as archive:
                for member in archive:
                    sample = _sample(archive, member, keys, shard.source)
                    if sample is not None:
                        count += 1
                        yield sample
                    elif not member.isdir():
                        left_out.add_file(readable_name(member.name.removeprefix("./")))
        except DAMAGE as error:
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
