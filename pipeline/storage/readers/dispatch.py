"""Read the samples of a shard with the reader of its kind."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence

import pyarrow as pa

from pipeline.errors import InputError, StorageError
from pipeline.storage.kept_columns import TEXT
from pipeline.storage.left_out import LeftOut
from pipeline.storage.listing import Entry, file_entry
from pipeline.storage.objects import UNREADABLE, present_state, why_unreadable
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.folder import read_folder
from pipeline.storage.readers.folder_fields import with_fields
from pipeline.storage.readers.parquet import column_types, read_parquet
from pipeline.storage.readers.tar import read_tar
from pipeline.storage.readers.zip import LABEL, labels_of, read_zip
from pipeline.storage.sample import Sample, unreadable
from pipeline.storage.shards import Shard, folder_etag
from pipeline.storage.uris import is_local, storage_errors

_ARCHIVES = {"tar": read_tar, "zip": read_zip, "parquet": read_parquet}


def read_samples(
    shard: Shard,
    keys: Container[str] | None = None,
    options: ReadOptions | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Sample]:
    """The samples of `shard`, or those with `keys`, in the order in which they lie there, streamed.

    Keys: in a folder the relative path with its extension (`Shard.keys`); in a tar or zip the
    member's path without the image extension, with it if that is taken; in Parquet the key column
    or the row number. Memory holds a few samples, never the shard, besides the keys.
    What the shard holds besides its samples is counted in `left_out` as it is passed over.

    Raises `StorageError` naming the shard if it is missing, truncated or damaged, after the
    samples before the damage, and after all of them if it is not as it was listed: a shard is
    whole and of one state or it fails, and nothing is dropped in silence. A shard file on a disk
    that may not be read when it is listed is one sample with the reject `unreadable`.
    Raises `InputError` if a Parquet file has no column that can be told to be the images.
    """
    options = options or ReadOptions()
    left_out = LeftOut() if left_out is None else left_out
    if shard.is_slice:
        samples = read_folder(shard, keys)
        if options.keep_columns:
            samples = with_fields(samples, shard, options, left_out)
        yield from samples
    elif shard.etag == UNREADABLE:
        yield from (sample for sample in _unreadable(shard) if keys is None or sample.key in keys)
    else:
        samples = _ARCHIVES[shard.kind](shard, options, left_out)
        yield from (sample for sample in samples if keys is None or sample.key in keys)
    if _changed(shard, whole=keys is None):
        raise StorageError(f"the shard '{shard.uri}' changed while it was read; run again")


def _unreadable(shard: Shard) -> Iterator[Sample]:
    """The one reject of a shard file that this user may not read, called as the file is.

    Raises `StorageError` where it can be read by now, or where the disk is away.
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
    """Whether the input is not as it was listed, as far as that can be told at little cost.

    Files in a bucket the reader compares itself; of some files of a folder, the sizes alone.
    """
    if shard.etag == UNREADABLE:
        return False  # its reader looked
    if not shard.is_slice:
        return file_entry(shard.uri).etag != shard.etag
    uris = [shard.uri_of(name) for name in shard.names]
    if not whole or not all(map(is_local, uris)):
        return False
    states = zip(shard.names, map(_state, uris), strict=True)
    return folder_etag(Entry(name, *state) for name, state in states) != shard.etag


def _state(uri: str) -> tuple[int, str]:
    """Of a file on a disk, as its listing has it; of one that only a list names it is nothing."""
    try:
        with storage_errors(f"read '{uri}'"):
            return present_state(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return 0, UNREADABLE
        raise


def kept_types(first: Shard, names: Sequence[str]) -> dict[str, str]:
    """The type of each of the fields `names` in the table, by the input's first shard.

    Of a Parquet file those of its columns; of StyleGAN's `dataset.zip` its label is an integer if
    all of them are. What stands in sidecars is text. Raises `InputError` for a field that the shard
    is known not to have, and `StorageError` where it cannot be read.
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
                "names none"
            )
    return types
