"""The images of a shard, one after another, as bytes."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from pipeline.storage.folders import read_folder
from pipeline.storage.formats import readable_name
from pipeline.storage.parquets import read_parquet
from pipeline.storage.sample import Sample
from pipeline.storage.shards import Shard
from pipeline.storage.tars import read_tar

_READERS = {"folder": read_folder, "tar": read_tar, "parquet": read_parquet}


def read_samples(shard: Shard, keys: Container[str] | None = None) -> Iterator[Sample]:
    """The samples of `shard`, or those with `keys`, in the order in which they lie there, streamed.

    Keys: in a folder the relative path with its extension; in a tar the member's path without the
    image extension (as webdataset has it), with it if that is taken; in Parquet the key column or
    the row number. Memory holds a few samples, never the shard, besides the keys.

    Raises `StorageError` naming the shard if it is missing, truncated or damaged, after the
    samples before the damage: a shard is whole or it fails, and nothing is dropped in silence.
    Raises `InputError` if a Parquet file has no column that can be told to be the images.
    """
    if keys is None:
        yield from _READERS[shard.kind](shard)
        return
    if shard.kind == "folder":  # what is not wanted is not fetched
        files = zip(shard.names, shard.sizes, strict=True)
        wanted = [file for file in files if readable_name(file[0]) in keys]
        shard = replace(
            shard, names=tuple(name for name, _ in wanted), sizes=tuple(size for _, size in wanted)
        )
    yield from (sample for sample in _READERS[shard.kind](shard) if sample.key in keys)
