"""How many samples a shard holds, at the least cost that its storage allows."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pipeline.errors import StorageError
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import file_entry
from pipeline.storage.members import Member, samples_of
from pipeline.storage.objects import UNREADABLE
from pipeline.storage.options import ReadOptions
from pipeline.storage.parquets import count_rows
from pipeline.storage.sample import Sample
from pipeline.storage.samples import read_samples
from pipeline.storage.shards import Shard
from pipeline.storage.strict_tar import DAMAGE, BoundedSource, StrictTarInfo
from pipeline.storage.tars import member_of
from pipeline.storage.unpacking import SIGNATURE_BYTES, packing_of
from pipeline.storage.uris import is_local, storage_errors
from pipeline.storage.zips import read_zip


def count_samples(
    shard: Shard,
    at_most: int | None = None,
    options: ReadOptions | None = None,
    left_out: LeftOut | None = None,
) -> int:
    """Number of samples in `shard`, or `at_most`; of one that is damaged those before the damage.

    A slice of a folder is counted by its listing, Parquet by its footer, a zip by its directory,
    and a tar on a disk by its headers; others are read. A shard file on a disk that may not be read
    is one sample. What is passed over on the way is counted in `left_out`. Raises `StorageError`
    where the storage does not answer.
    """
    if shard.is_slice or shard.etag == UNREADABLE:
        return len((shard.names or (shard.uri,))[:at_most])
    count = 0
    # What is carried over has no influence on which samples there are.
    options = replace(options or ReadOptions(), keep_columns={})
    left_out = LeftOut() if left_out is None else left_out
    try:
        if shard.kind == "parquet":
            rows = count_rows(shard, options)
            return rows if at_most is None else min(rows, at_most)
        for _ in itertools.islice(_counted(shard, options, left_out), at_most):
            count += 1
    except StorageError:
        try:
            file_entry(shard.uri)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return count


def _counted(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """The samples of an archive, without their content where it need not be read."""
    if shard.kind == "zip":
        return read_zip(shard, options, left_out, content=False)
    if is_local(shard.uri) and not _is_packed(shard):
        return samples_of(_members(shard), shard.source, options, left_out)
    return read_samples(shard, None, options, left_out)


def _is_packed(shard: Shard) -> bool:
    with storage_errors(f"read '{shard.uri}'"), Path(shard.uri).open("rb") as file:
        return packing_of(file.read(SIGNATURE_BYTES)) is not None


class _Seekable(BoundedSource):
    """`BoundedSource` for an archive whose members are passed over without reading them."""

    @property
    def fileobj(self) -> BoundedSource:
        """Where `StrictTarInfo` looks for the bound on headers."""
        return self

    def seek(self, offset: int) -> int:
        """As of a file."""
        return int(self._stream.seek(offset))

    def tell(self) -> int:
        """As of a file."""
        return int(self._stream.tell())


def _members(shard: Shard) -> Iterator[Member]:
    """The members of a tar on a disk, of whose content only the first bytes are read."""
    with storage_errors(f"read '{shard.uri}'"), Path(shard.uri).open("rb") as raw:
        try:
            source = cast(Any, _Seekable(raw))
            with tarfile.open(fileobj=source, mode="r:", tarinfo=StrictTarInfo) as archive:
                for info in archive:
                    if not info.isdir():
                        yield _without_content(member_of(archive, info))
                    cast(Any, archive).members.clear()  # `tarfile` keeps all of them
        except DAMAGE as error:
            raise StorageError(f"the shard '{shard.uri}' is damaged") from error


def _without_content(member: Member) -> Member:
    read = member.read
    return replace(member, read=lambda size: read(size) if size is not None else b"")
