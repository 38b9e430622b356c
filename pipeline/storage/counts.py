"""How many samples a shard holds, at the least cost that its storage allows."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage.listing import file_entry
from pipeline.storage.samples import read_samples
from pipeline.storage.shards import Shard
from pipeline.storage.strict_tar import DAMAGE, BoundedSource, StrictTarInfo
from pipeline.storage.tars import is_sample
from pipeline.storage.unpacking import SIGNATURE_BYTES, packing_of
from pipeline.storage.uris import filesystem, is_local, storage_errors


def count_samples(shard: Shard, at_most: int | None = None) -> int:
    """Number of samples in `shard`, or `at_most`; of one that is damaged those before the damage.

    A slice of a folder is counted by its listing, Parquet by its footer, and a tar on a disk by its
    headers; others are read. Raises `StorageError` where the storage does not answer.
    """
    if shard.kind == "folder":
        return len(shard.names[:at_most])
    count = 0
    try:
        for _ in itertools.islice(_counted(shard), at_most):
            count += 1
    except StorageError:
        try:
            file_entry(shard.uri)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return count


def _counted(shard: Shard) -> Iterator[Any]:
    """As many things as `shard` has samples."""
    if shard.kind == "parquet":
        return iter(range(_rows(shard)))
    if is_local(shard.uri) and not _is_packed(shard):
        return _members(shard)
    return read_samples(shard)


def _rows(shard: Shard) -> int:
    fs, path = filesystem(shard.uri)
    try:
        with storage_errors(f"read '{shard.uri}'"), fs.open(path, "rb") as file:
            return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, UnicodeDecodeError):
        return 0  # no Parquet, as its reader says


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


def _members(shard: Shard) -> Iterator[tarfile.TarInfo]:
    """The members of a tar on a disk that are samples, as `read_tar` takes them."""
    with storage_errors(f"read '{shard.uri}'"), Path(shard.uri).open("rb") as raw:
        try:
            source = cast(Any, _Seekable(raw))
            with tarfile.open(fileobj=source, mode="r:", tarinfo=StrictTarInfo) as archive:
                for member in archive:
                    if is_sample(member):
                        yield member
                    cast(Any, archive).members.clear()  # `tarfile` keeps all of them
        except DAMAGE as error:
            raise StorageError(f"the shard '{shard.uri}' is damaged") from error
