"""Fields of a folder's images, out of the files beside them: `a.txt` and `a.json` of `a.jpg`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.storage.kept_columns import MAX_FIELD_BYTES, fields_of
from pipeline.storage.left_out import LeftOut
from pipeline.storage.read_options import ReadOptions
from pipeline.storage.readers.folder import by_root, fetched
from pipeline.storage.readers.folder_metadata import FolderMetadata
from pipeline.storage.sample import Sample
from pipeline.storage.shards import Shard
from pipeline.storage.uris import filesystem, is_local_filesystem, join, storage_errors

# Images whose sidecars are fetched together.
_IMAGES, _BYTES = 16, 64 << 20


def with_fields(
    samples: Iterable[Sample], shard: Shard, options: ReadOptions, left_out: LeftOut
) -> Iterator[Sample]:
    """The samples of a folder's slice with the fields of `options.keep_columns`.

    A field stands in a `metadata.csv` or `metadata.jsonl` (`FolderMetadata`), is the file of the
    same stem with its name for extension, or stands in the `.json` of that stem. Raises
    `StorageError` where the storage does not answer.
    """
    names = dict(zip(shard.keys, shard.names, strict=True))
    metadata = FolderMetadata(shard)
    for group in _groups(samples):
        rows = metadata.rows(names[sample.key] for sample in group)
        stems = [_stem(names[sample.key]) for sample in group]
        wanted = {*options.keep_columns, "json"}
        contents = _contents(shard, [f"{stem}.{end}" for stem in stems for end in sorted(wanted)])
        for sample, stem, row in zip(group, stems, rows, strict=True):
            there = {
                end: contents[f"{stem}.{end}"] for end in wanted if f"{stem}.{end}" in contents
            }
            fields = fields_of(there, row, options.keep_columns, left_out)
            yield sample.with_key(sample.key, fields)


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += len(sample.content)
        if len(group) == _IMAGES or size > _BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _stem(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix) or None]


def _contents(shard: Shard, names: list[str]) -> dict[str, bytes]:
    """Of those files that there are, and that are not too long, the contents by name."""
    found: dict[str, bytes] = {}
    with storage_errors(f"read what lies beside the images of '{shard.source}'"):
        for root, paths in by_root(shard, names).items():
            for path, content in _files(root, [*paths]):
                found[paths[path]] = content
    return found


def _files(root: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    fs, place = filesystem(root)
    if is_local_filesystem(fs):
        for name in names:
            path = Path(join(place, name))
            if path.is_file() and path.stat().st_size <= MAX_FIELD_BYTES:
                yield name, path.read_bytes()
        return
    for name, one in zip(names, fetched(fs, place, names), strict=True):
        if isinstance(one, BaseException):
            if not isinstance(one, FileNotFoundError):
                raise one
        elif len(one.content) <= MAX_FIELD_BYTES:
            yield name, one.content
