"""What stands in the manifests of many shards, in few files: `_index/shards/`.

A manifest is the truth. A line is believed only while its manifest is the object that it was made
from, by the etag that a listing shows. So a restart lists the manifests, a thousand a request, and
reads those alone that stand in no index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.storage import Store
from pipeline.table.index_files import put_rows, read_tables, rows_of
from pipeline.table.manifests import ShardManifest, manifest_etags, read_manifest

# Shards of one file. Fewer are not written: reading a few manifests takes no time.
INDEXED_AT_ONCE = 1000
_FOLDER = "_index/shards/"
_THREADS = 16  # manifests that are read at a time


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What a restart has to know of a committed shard."""

    shard: str
    uri: str
    etag: str
    size: int
    samples: int
    faces: int
    rejects: int
    parts: int
    figures: str
    manifest_etag: str
    left_out: str = ""  # JSON of `LeftOut`

    @classmethod
    def of(cls, manifest: ShardManifest, manifest_etag: str) -> ShardEntry:
        """The entry of the shard whose manifest the store knows under `manifest_etag`."""
        return cls(
            shard=manifest.shard,
            uri=manifest.uri,
            etag=manifest.etag,
            size=manifest.size,
            samples=manifest.samples,
            faces=manifest.faces,
            rejects=manifest.rejects,
            parts=len(manifest.parts),
            figures=manifest.figures.to_text(),
            manifest_etag=manifest_etag,
            left_out=manifest.left_out.to_text(),
        )


def write_entries(store: Store, entries: Sequence[ShardEntry]) -> str:
    """Put one file of the index; its name."""
    return put_rows(store, _FOLDER, entries)


def all_entries(store: Store) -> Iterator[list[ShardEntry]]:
    """What the index says, a file at a time; of a shard that was done again also what it was."""
    for _, table in read_tables(store, _FOLDER, ShardEntry):
        yield [ShardEntry(*row) for row in rows_of(table)]


def shard_entries(store: Store, *, by_manifests: bool = False) -> Iterator[ShardEntry]:
    """Of every committed shard, by the index, or by the manifest of one that stands in none.

    All `by_manifests` where the index is not to be believed.
    """
    etags = dict(manifest_etags(store))
    for entry in () if by_manifests else read_entries(store, etags):
        del etags[entry.shard]
        yield entry
    with ThreadPoolExecutor(_THREADS) as pool:
        manifests = pool.map(lambda shard: read_manifest(store, shard), etags)
        for manifest, etag in zip(manifests, etags.values(), strict=True):
            yield ShardEntry.of(manifest, etag)


def read_entries(store: Store, manifests: Mapping[str, str]) -> Iterator[ShardEntry]:
    """The entries that are true of `manifests`, shard's id to its manifest's etag; once each."""
    seen: set[str] = set()
    for entries in all_entries(store):
        for entry in entries:
            if entry.manifest_etag == manifests.get(entry.shard) and entry.shard not in seen:
                seen.add(entry.shard)
                yield entry
