"""Count the samples of a shard, and draw a few samples from a whole input."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, cast

from pipeline.errors import MissingError, StorageError
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import file_entry
from pipeline.storage.objects import UNREADABLE
from pipeline.storage.read_options import ONE_IMAGE, ReadOptions
from pipeline.storage.readers.archive_members import Member, samples_of
from pipeline.storage.readers.decompression import SIGNATURE_BYTES, packing_of
from pipeline.storage.readers.dispatch import read_samples
from pipeline.storage.readers.parquet import count_rows
from pipeline.storage.readers.tar import DAMAGE, BoundedSource, StrictTarInfo, members_of
from pipeline.storage.readers.zip import read_zip
from pipeline.storage.readers.zip_entries import ZipDamageError
from pipeline.storage.sample import Sample, report_damage
from pipeline.storage.shards import Shard, list_shards
from pipeline.storage.uris import is_local, storage_errors


def count_samples(
    shard: Shard,
    at_most: int | None = None,
    options: ReadOptions | None = None,
    left_out: LeftOut | None = None,
) -> int:
    """Return the number of samples in `shard`, at most `at_most`.

    A slice of a folder is counted by its listing, Parquet by its footer, a zip by its directory,
    and a tar on a disk by its headers; other shards are read. A damaged shard counts the samples
    before the damage. A shard file on a disk that this user may not read counts as one sample.
    Files that are skipped are counted in `left_out`. Raises `StorageError` if the storage does not
    answer.
    """
    if shard.is_slice or shard.etag == UNREADABLE:
        return len((shard.names or (shard.uri,))[:at_most])
    count = 0
    # The kept columns have no influence on the number of samples.
    options = replace(options or ReadOptions(), keep_columns={})
    left_out = LeftOut() if left_out is None else left_out
    try:
        if shard.kind == "parquet":
            rows = count_rows(shard, options)
            return rows if at_most is None else min(rows, at_most)
        for _ in islice(_samples(shard, options, left_out), at_most):
            count += 1
    except StorageError:
        with suppress(MissingError):
            file_entry(shard.uri)
    return count


def _samples(shard: Shard, options: ReadOptions, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the samples of an archive, without their contents if these need not be read."""
    if shard.kind == "zip":
        samples = read_zip(shard, options, left_out, content=False)
        return report_damage(samples, shard.uri, (ZipDamageError,))
    if is_local(shard.uri) and not _is_packed(shard):
        members = _members_on_disk(shard)
        samples = samples_of(members, shard.source, options, left_out, content=False)
        return report_damage(samples, shard.uri, DAMAGE)
    return read_samples(shard, None, options, left_out)


def _is_packed(shard: Shard) -> bool:
    with storage_errors(f"read '{shard.uri}'"), Path(shard.uri).open("rb") as file:
        return packing_of(file.read(SIGNATURE_BYTES)) is not None


class _Seekable(BoundedSource):
    """A `BoundedSource` that can skip the contents of members by seeking."""

    @property
    def fileobj(self) -> BoundedSource:
        """Return the source that limits headers, where `StrictTarInfo` looks for it."""
        return self

    def seek(self, offset: int) -> int:
        """Move to a position, as a file does."""
        return int(self._stream.seek(offset))

    def tell(self) -> int:
        """Return the position, as a file does."""
        return int(self._stream.tell())


def _members_on_disk(shard: Shard) -> Iterator[Member]:
    """Yield the members of a tar that is not compressed, seeking from header to header."""
    with Path(shard.uri).open("rb") as raw:
        source = cast(Any, _Seekable(raw))
        with tarfile.open(fileobj=source, mode="r:", tarinfo=StrictTarInfo) as archive:
            yield from members_of(archive)


_OPTIONS = ReadOptions(image_field=ONE_IMAGE)


def spread_samples(input_uri: str, limit: int) -> Iterator[Sample]:
    """Yield up to `limit` samples of `input_uri`, spread evenly over it, in its order.

    One image per webdataset key is taken, as `invert_dataset` does by default. Of a folder only
    the chosen files are read. The samples of archives and Parquet files are counted first. If
    there are more shards than `limit`, only `limit` of them are opened, for their first samples.
    Raises the errors of `list_shards` and `read_samples`.
    """
    shards = list(list_shards(input_uri))
    if len(shards) > limit:
        for index in evenly(len(shards), limit):
            yield from _samples_at(shards[index], [0])
        return
    ends = list(accumulate((count_samples(shard, None, _OPTIONS) for shard in shards), initial=0))
    chosen = evenly(ends[-1], limit)
    for shard, begin, end in zip(shards, ends, ends[1:], strict=False):
        yield from _samples_at(shard, [place - begin for place in chosen if begin <= place < end])


def evenly(count: int, limit: int) -> list[int]:
    """Return up to `limit` of the indices 0..`count` - 1, evenly, with the first and the last."""
    length = min(count, limit)
    return [step * (count - 1) // max(1, length - 1) for step in range(length)]


def _samples_at(shard: Shard, places: Sequence[int]) -> Iterator[Sample]:
    """Yield the samples at the ascending indices `places`; nothing after the last one is read."""
    if not places:
        return
    if shard.is_slice:
        keys = shard.keys
        yield from read_samples(shard, {keys[place] for place in places}, _OPTIONS)
        return
    chosen = set(places)
    for place, sample in enumerate(islice(read_samples(shard, None, _OPTIONS), places[-1] + 1)):
        if place in chosen:
            yield sample
