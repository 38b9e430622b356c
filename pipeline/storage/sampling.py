"""Count the samples of a shard, and draw a few samples from a whole input."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, cast

from pipeline.errors import StorageError
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import file_entry
from pipeline.storage.objects import UNREADABLE
from pipeline.storage.read_options import ONE_IMAGE, ReadOptions
from pipeline.storage.readers.archive_members import Member, samples_of
from pipeline.storage.readers.decompression import SIGNATURE_BYTES, packing_of
from pipeline.storage.readers.dispatch import read_samples
from pipeline.storage.readers.parquet import count_rows
from pipeline.storage.readers.tar import DAMAGE, BoundedSource, StrictTarInfo, member_of
from pipeline.storage.readers.zip import read_zip
from pipeline.storage.sample import Sample
from pipeline.storage.shards import Shard, list_shards
from pipeline.storage.uris import is_local, storage_errors


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


_OPTIONS = ReadOptions(image_field=ONE_IMAGE)


def spread_samples(input_uri: str, limit: int) -> Iterator[Sample]:
    """Up to `limit` samples of `input_uri`, spread evenly over it, in its order, as a stream.

    Of several images with one webdataset key one is taken, as `invert_dataset` does by default.
    Of a folder the chosen files alone are read. The samples of archives and Parquet files are
    counted first; where there are more shards than `limit`, `limit` of them are
    opened, for their first sample. Raises as `list_shards` and `read_samples` do.
    """
    shards = list(list_shards(input_uri))
    if len(shards) > limit:
        for index in evenly(len(shards), limit):
            yield from _at(shards[index], [0])
        return
    ends = list(accumulate((count_samples(shard, None, _OPTIONS) for shard in shards), initial=0))
    chosen = evenly(ends[-1], limit)
    for shard, begin, end in zip(shards, ends, ends[1:], strict=False):
        yield from _at(shard, [place - begin for place in chosen if begin <= place < end])


def evenly(count: int, limit: int) -> list[int]:
    """Up to `limit` of the places 0..`count` - 1, the first and the last among them."""
    few = min(count, limit)
    return [step * (count - 1) // max(1, few - 1) for step in range(few)]


def _at(shard: Shard, places: Sequence[int]) -> Iterator[Sample]:
    """The samples at `places`, ascending, of a shard; nothing behind the last is read."""
    if not places:
        return
    if shard.is_slice:
        keys = shard.keys
        yield from read_samples(shard, {keys[place] for place in places}, _OPTIONS)
        return
    wanted = set(places)
    for place, sample in enumerate(islice(read_samples(shard, None, _OPTIONS), places[-1] + 1)):
        if place in wanted:
            yield sample
