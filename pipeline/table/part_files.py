"""List and remove the part files of shards; there is no other record of uncommitted parts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from pipeline.storage import ObjectInfo, Store, is_local
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name, part_names
from pipeline.table.shard_index import CommittedShards
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record

_BATCH = 4096
_THREADS = 16

# Etags by name.
Files = dict[str, str]


def files_of(store: Store, shard_id: str) -> Files:
    """Return the files of all parts of a shard, latents before rejects."""
    return _etags(_of_kind(store, LATENTS, shard_id) | _of_kind(store, REJECTS, shard_id))


def list_names(store: Store, shard_id: str, parts: int) -> set[str]:
    """Return the names of a shard's part files, also of parts beyond the first `parts`.

    On an object store these are all files, by one listing. On a disk a listing would cover all
    shards, so names are tested instead: those of the first `parts` parts and of the one after them.
    """
    if not is_local(store.root):
        return set(files_of(store, shard_id))
    names = (name for part in range(parts + 1) for name in part_names(shard_id, part))
    return set(filter(store.exists, names))


def infos_of(store: Store, shard_ids: Sequence[str]) -> list[dict[str, ObjectInfo]]:
    """Return the files of all parts of each shard; a disk is listed once for all of them."""
    if is_local(store.root):
        infos: dict[str, dict[str, ObjectInfo]] = {shard_id: {} for shard_id in shard_ids}
        for shard_id, name, info in _all_files(store):
            if shard_id in infos:
                infos[shard_id][name] = info
        return list(infos.values())
    with ThreadPoolExecutor(_THREADS) as pool:
        kinds = [pool.map(partial(_of_kind, store, kind), shard_ids) for kind in (LATENTS, REJECTS)]
        return [latents | rejects for latents, rejects in zip(*kinds, strict=True)]


def remove_parts_from(store: Store, files: Iterable[str], first: int) -> int:
    """Remove those of a shard's `files` that belong to part `first` or a later one, in their order.

    Return the number of removed files.
    """
    parsed = ((name, parse_part_name(name)) for name in files)
    names = [name for name, part in parsed if part and part[1] >= first]
    for name in names:
        store.remove(name)
    return len(names)


def remove_unowned_parts(
    store: Store, record: ShardRecord, files: Iterable[str] | None = None
) -> int:
    """Remove the parts of a shard that its manifest does not have; return the number of files.

    `files` are all part files of the shard, listed by default. If another run has meanwhile
    committed the shard with more parts, some of which were removed here, its manifest is removed
    too: the shard is done again, and no commit lacks a part.
    """
    count = record.n_parts
    names = files_of(store, record.shard) if files is None else files
    removed = remove_parts_from(store, names, count)
    name = manifest_name(record.shard)
    if removed and store.exists(name) and read_shard_record(store, record.shard).n_parts > count:
        store.remove(name)
    return removed


def _of_kind(store: Store, kind: str, shard_id: str) -> dict[str, ObjectInfo]:
    """Return the files of one kind that belong to parts of a shard."""
    # "x-1-00000" is a part of the shard "x-1", not of "x".
    listing = store.infos(f"{kind}/{shard_id}-")
    return {name: info for name, info in listing if _shard_of(name) == shard_id}


def _etags(infos: dict[str, ObjectInfo]) -> Files:
    return {name: info.etag for name, info in infos.items()}


def _all_files(store: Store) -> Iterator[tuple[str, str, ObjectInfo]]:
    """Yield shard, name and metadata of every part file, latents before rejects."""
    for kind in (LATENTS, REJECTS):
        for name, info in store.infos(f"{kind}/"):
            if shard_id := _shard_of(name):
                yield shard_id, name, info


def _shard_of(name: str) -> str | None:
    parsed = parse_part_name(name)
    return parsed[0] if parsed else None


class PartFiles:
    """Part files of many uncommitted shards; each shard may be looked up once.

    An object store lists by prefix: one or two requests per shard, none if the table has no parts.
    A disk lists whole folders: once, keeping the files of uncommitted shards in memory.
    """

    def __init__(self, store: Store, committed: CommittedShards) -> None:
        self.store, self.committed = store, committed
        self._lock = threading.Lock()
        self._on_disk = is_local(store.root)
        self._open: dict[str, Files] | None = None
        self._any = self._on_disk or store.has(REJECTS) or store.has(LATENTS)

    def of(self, shard_id: str) -> Files:
        """Return the files of all parts of an uncommitted shard."""
        if self._on_disk:
            return self._listed().pop(shard_id, {})
        if not self._any:
            return {}
        # Without rejects there are no latents: rejects are written first and removed last.
        rejects = _of_kind(self.store, REJECTS, shard_id)
        return _etags(_of_kind(self.store, LATENTS, shard_id) | rejects) if rejects else {}

    def _listed(self) -> dict[str, Files]:
        with self._lock:
            if self._open is None:
                self._open = {}
                for shard_id, name, info in self._of_open_shards():
                    self._open.setdefault(shard_id, {})[name] = info.etag
            return self._open

    def _of_open_shards(self) -> Iterator[tuple[str, str, ObjectInfo]]:
        listing = _all_files(self.store)
        while batch := list(islice(listing, _BATCH)):
            committed = self.committed.are_committed([shard_id for shard_id, _, _ in batch])
            yield from (file for file, done in zip(batch, committed, strict=True) if not done)
