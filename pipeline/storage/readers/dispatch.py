"""Read the samples of a shard with the reader of its kind."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence

import pyarrow as pa

from pipeline.errors import InputError, MissingError, StorageError
from pipeline.storage.kept_columns import TEXT
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import Entry, file_entry
from pipeline.storage.objects import UNREADABLE, present_state, why_unreadable
from pipeline.storage.parquet_columns import NOT_PARQUET
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.folder import read_folder
from pipeline.storage.readers.folder_fields import with_fields
from pipeline.storage.readers.parquet import column_types, read_parquet
from pipeline.storage.readers.tar import DAMAGE, read_tar
from pipeline.storage.readers.zip import LABEL, labels_of, read_zip
from pipeline.storage.readers.zip_entries import ZipDamageError
from pipeline.storage.sample import Sample, report_damage, unreadable
from pipeline.storage.shards import Shard, folder_etag
from pipeline.storage.uris import is_local, storage_errors

# Kind of a shard file -> its reader, and the errors that this raises for damage.
_READERS = {
    "tar": (read_tar, DAMAGE),
    "zip": (read_zip, (ZipDamageError,)),
    "parquet": (read_parquet, NOT_PARQUET),
}


def read_samples(
    shard: Shard,
    keys: Container[str] | None = None,
    options: ReadOptions | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Sample]:
    """Stream the samples of `shard`, or those with `keys`, in the order of the shard.

    Keys: in a folder the relative path with its extension (`Shard.keys`); in a tar or zip the
    member's path without the image extension, with it if that is taken; in Parquet the key column
    or the row number. Memory holds the keys and a few samples, never the whole shard. Members that
    are not samples are counted in `left_out`.

    Raises `StorageError` naming the shard if it is missing, truncated or damaged, after the samples
    before the damage, and at the end if it changed since it was listed: a shard is read whole and
    in one state, or it fails. A shard file on a disk that this user may not read is one sample with
    the reject `unreadable`. Raises `InputError` if a Parquet file has no clear column of images.
    """
    options = options or ReadOptions()
    left_out = LeftOut() if left_out is None else left_out
    if shard.is_slice:
        samples = read_folder(shard, keys)
        if options.keep_columns:
            samples = with_fields(samples, shard, options, left_out)
    elif shard.etag == UNREADABLE:
        samples = _unreadable(shard)
    else:
        read, damage = _READERS[shard.kind]
        samples = report_damage(read(shard, options, left_out), shard.uri, damage)
    yield from (sample for sample in samples if keys is None or sample.key in keys)
    if _changed(shard, whole=keys is None):
        raise StorageError(f"the shard '{shard.uri}' changed while it was read; run again")


def _unreadable(shard: Shard) -> Iterator[Sample]:
    """Yield the reject of a shard file that this user may not read; its key is the file's name.

    Raises `StorageError` if the file can be read by now, or if the disk fails.
    """
    with storage_errors(f"read '{shard.uri}'"):
        try:
            os.close(os.open(shard.uri, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            why = why_unreadable(shard.uri, error)
            if not why:
                raise
            yield unreadable(shard.source.rsplit("/", 1)[-1], shard.source, why)
            return
    raise StorageError(f"the shard '{shard.uri}' changed since it was listed; run again")


def _changed(shard: Shard, *, whole: bool) -> bool:
    """Return whether the shard changed since it was listed, as far as that is cheap to check.

    The reader itself compares files in a bucket, and the sizes of files that are read by `keys`.
    """
    if shard.etag == UNREADABLE:
        return False  # its reader checks this
    if not shard.is_slice:
        return file_entry(shard.uri).etag != shard.etag
    uris = [shard.uri_of(name) for name in shard.names]
    if not whole or not all(map(is_local, uris)):
        return False
    states = zip(shard.names, map(_state, uris), strict=True)
    return folder_etag(Entry(name, *state) for name, state in states) != shard.etag


def _state(uri: str) -> tuple[int, str]:
    """Return size and etag of a file on a disk as a listing has them; `UNREADABLE` if missing."""
    try:
        with storage_errors(f"read '{uri}'"):
            return present_state(uri)
    except MissingError:
        return 0, UNREADABLE


def kept_types(first: Shard, names: Sequence[str]) -> dict[str, str]:
    """Return the type in the table of each of the fields `names`, by the input's first shard.

    Parquet columns keep their types. The label of StyleGAN's `dataset.zip` is an integer if all
    labels are. Fields from sidecars are text. Raises `InputError` for a field that the shard cannot
    have, and `StorageError` if it cannot be read.
    """
    if first.kind == "parquet":
        return dict.fromkeys(names, TEXT) | column_types(first, names)
    types = dict.fromkeys(names, TEXT)
    if first.kind == "zip" and LABEL in types:
        labels = labels_of(first)
        if labels and all(type(label) is int for label in labels.values()):
            types[LABEL] = str(pa.int64())
        elif not labels and len(types) == 1:
            raise InputError(
                f"--keep-columns: '{first.source}' has no labels: its dataset.json is missing or "
                "lists none; leave `label` out"
            )
    return types
