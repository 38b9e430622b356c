"""Read the samples of a zip archive, such as StyleGAN's `dataset.zip`, without extracting it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.left_out import LeftOut
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.archive_members import Member, UnreadableError, samples_of
from pipeline.storage.readers.zip_entries import (
    ZipDamageError,
    ZipEntry,
    entries_of,
    read_entry,
)
from pipeline.storage.sample import Sample
from pipeline.storage.seekable import open_seekable
from pipeline.storage.shards import Shard
from pipeline.storage.uris import one_line, storage_errors

LABEL = "label"
_LABELS_NAME = "dataset.json"
_PAIR = 2  # length of an entry of the labels: a name and a label
_MAX_LABEL_BYTES = 64 << 20  # of `dataset.json`: 1.9 million labels as StyleGAN writes them
# Limits for all entries together, the ratio to the archive's size: entries may share bytes.
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 200
_DIRECTORY_BLOCK, _BLOCK = 1 << 20, 4 << 20


def read_zip(
    shard: Shard, options: ReadOptions, left_out: LeftOut, *, content: bool = True
) -> Iterator[Sample]:
    """Yield the images of the archive in the order of its central directory (`samples_of`).

    With `label` among `options.keep_columns`, each has its label of StyleGAN's `dataset.json`. An
    entry that is encrypted, damaged or compressed by another method than deflate is a reject. A
    damaged directory raises `ZipDamageError` after the samples before the damage. Without `content`
    the samples are empty, for counting.
    """
    with _open_archive(shard) as files:
        labels = _labels(files, shard) if LABEL in options.keep_columns else None
        members = _members(files, labels)
        yield from samples_of(members, shard.source, options, left_out, content=content)


def labels_of(shard: Shard) -> Mapping[str, Any] | None:
    """Return the labels of StyleGAN's `dataset.json` by image; None without labels.

    Raises `StorageError` if the archive or its labels cannot be read.
    """
    with storage_errors(f"read '{shard.uri}'"):
        try:
            with _open_archive(shard) as files:
                return _labels(files, shard)
        except ZipDamageError as error:
            raise StorageError(f"the shard '{shard.uri}' is damaged: {error}") from error


@contextmanager
def _open_archive(shard: Shard) -> Iterator[tuple[Any, Any]]:
    """Open the archive twice, for its directory and for its entries.

    The two are read alternately, and each file keeps its own read-ahead block.
    """
    with (
        open_seekable(shard.uri, _DIRECTORY_BLOCK) as directory,
        open_seekable(shard.uri, _BLOCK) as data,
    ):
        yield directory, data


def _members(files: tuple[Any, Any], labels: Mapping[str, Any] | None) -> Iterator[Member]:
    directory, data = files
    contents = _Contents(data)
    for entry in entries_of(directory):
        if entry.name.endswith("/"):
            continue
        name = entry.name.removeprefix("./")
        values = {LABEL: labels.get(name)} if labels is not None else {}
        yield Member(name, entry.size, partial(contents.read, entry), entry.refusal, values)


class _Contents:
    """Contents of the entries of an archive, limited in the bytes that all together unpack to."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._left = max(_BOMB_BYTES, _BOMB_RATIO * data.seek(0, 2))

    def read(self, entry: ZipEntry, size: int | None) -> bytes:
        """Read the first `size` bytes of an entry, or all.

        Raises `UnreadableError` if they cannot be read, and `ZipDamageError` beyond the limit.
        """
        self._left -= entry.size if size is None else size
        if self._left < 0:
            raise ZipDamageError(f"it unpacks to over {_BOMB_RATIO} times its size")
        return read_entry(self._data, entry, size)


def _labels(files: tuple[Any, Any], shard: Shard) -> Mapping[str, Any] | None:
    """Read `{"labels": [["00000/img00000000.png", 3], ...]}`; return labels by name or None."""
    directory, data = files
    for entry in entries_of(directory):
        if entry.name.removeprefix("./") == _LABELS_NAME:
            break
    else:
        return None
    if entry.size > _MAX_LABEL_BYTES:
        raise StorageError(
            f"'{_LABELS_NAME}' in '{shard.uri}' has {entry.size} bytes, of at most "
            f"{_MAX_LABEL_BYTES} that are read: leave the label out of --keep-columns"
        )
    try:
        document = json.loads(read_entry(data, entry))
        return _by_name(document.get("labels") if isinstance(document, dict) else None)
    except (UnreadableError, ValueError, TypeError, RecursionError) as error:
        raise StorageError(
            f"'{_LABELS_NAME}' in '{shard.uri}' cannot be read ({one_line(error)}): replace it, or "
            "leave the label out of --keep-columns"
        ) from error


def _by_name(entries: Any) -> Mapping[str, Any] | None:
    """Return the labels of all valid pairs by name; `TypeError` if no entry is a list."""
    if not entries:
        return None
    lists = [entry for entry in entries if isinstance(entry, list)]
    if not lists:
        raise TypeError("its labels are not pairs of a name and a label")
    return {str(entry[0]): entry[1] for entry in lists if len(entry) == _PAIR}
