"""What stands in the manifests of many shards, in few files: `_index/<first shard>-<hash>.parquet`.

A cache that may be deleted at any time: a manifest is the truth. A line is believed only while its
manifest is the object that it was made from, by the etag that a listing shows. So a restart lists
the manifests, a thousand a request, and reads those alone that stand in no index.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage import Store
from pipeline.table.manifests import ShardManifest

# Shards of one file. Fewer are not written: reading a few manifests takes no time.
INDEXED_AT_ONCE = 1000
_FOLDER = "_index/"
_THREADS = 16


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
    manifest_etag: str

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
            manifest_etag=manifest_etag,
        )


_TYPES = {"str": pa.string(), "int": pa.int64()}
_SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(ShardEntry)])


def write_entries(store: Store, entries: Sequence[ShardEntry]) -> str:
    """Put one file of the index; its name."""
    rows = sorted(entries, key=lambda entry: entry.shard)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA), sink)
    content = sink.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:16]
    name = f"{_FOLDER}{rows[0].shard}-{digest}.parquet"
    store.put(name, content)
    return name


def read_entries(store: Store, manifests: Mapping[str, str]) -> Iterator[ShardEntry]:
    """The entries that are true of `manifests`, shard's id to its manifest's etag; once each."""
    names = [name for name in store.names(_FOLDER) if name.endswith(".parquet")]
    seen: set[str] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        for table in pool.map(lambda name: _read(store, name), names):
            columns = [column.to_pylist() for column in table.columns]
            for row in zip(*columns, strict=True):
                entry = ShardEntry(*row)
                current = manifests.get(entry.shard)
                if entry.manifest_etag == current and entry.shard not in seen:
                    seen.add(entry.shard)
                    yield entry


def _read(store: Store, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(store.get(name)), schema=_SCHEMA)
    except (pa.ArrowException, StorageError):
        # A cache: what cannot be read here is read from the manifests.
        return _SCHEMA.empty_table()
