"""Which part files a shard has: by listing, as parts stand in no list of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from pipeline.storage import ObjectInfo, Store, is_local
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name, part_name
from pipeline.table.shard_index import CommittedShards
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record

_BATCH = 4096
_THREADS = 16

# Etags by name.
Files = dict[str, str]


def files_of(store: Store, shard_id: str) -> Files:
    """The files of all parts of a shard, latents before rejects."""
    return _etags(_of_kind(store, LATENTS, shard_id) | _of_kind(store, REJECTS, shard_id))


def names_beside(store: Store, shard_id: str, parts: int) -> set[str]:
    """The names of a shard's files, those that are one of so many parts and those that are not.

    An object store lists them. A disk would list all shards' to tell these: there a part is looked
    up by its name, and of the parts that a commit does not have the next one alone.
    """
    if not is_local(store.root):
        return set(files_of(store, shard_id))
    kinds = (LATENTS, REJECTS)
    names = (part_name(kind, shard_id, part) for kind in kinds for part in range(parts + 1))
    return {name for name in names if store.exists(name)}


def infos_of(store: Store, shard_ids: Sequence[str]) -> list[dict[str, ObjectInfo]]:
    """The files of all parts of each of these shards: a disk is listed once for all of them."""
    if is_local(store.root):
        found: dict[str, dict[str, ObjectInfo]] = {shard_id: {} for shard_id in shard_ids}
        for shard_id, name, info in _everything(store):
            if shard_id in found:
                found[shard_id][name] = info
        return list(found.values())
    with ThreadPoolExecutor(_THREADS) as pool:
        kinds = [pool.map(partial(_of_kind, store, kind), shard_ids) for kind in (LATENTS, REJECTS)]
        return [latents | rejects for latents, rejects in zip(*kinds, strict=True)]


def remove_parts_from(store: Store, files: Iterable[str], first: int) -> int:
    """Remove those of a shard's `files` that are of part `first` and above, in their order.

    How many files these were.
    """
    parsed = ((name, parse_part_name(name)) for name in files)
    names = [name for name, part in parsed if part and part[1] >= first]
    for name in names:
        store.remove(name)
    return len(names)


def remove_parts_beside(
    store: Store, record: ShardRecord, files: Iterable[str] | None = None
) -> int:
    """Remove the parts of a shard that its manifest does not have; how many files these were.

    `files` are all files of its parts, where they are known. A manifest that another run put
    meanwhile, of more parts, goes as well if it lost one of them: the shard is done again, and no
    commit stands without its parts.
    """
    count = record.n_parts
    names = files_of(store, record.shard) if files is None else files
    removed = remove_parts_from(store, names, count)
    name = manifest_name(record.shard)
    if removed and store.exists(name) and read_shard_record(store, record.shard).n_parts > count:
        store.remove(name)
    return removed


def _of_kind(store: Store, kind: str, shard_id: str) -> dict[str, ObjectInfo]:
    """The files of one kind that belong to parts of a shard."""
    # "x-1-00000" is a part of the shard "x-1", not of "x".
    found = store.infos(f"{kind}/{shard_id}-")
    return {name: info for name, info in found if _shard_of(name) == shard_id}


def _etags(infos: dict[str, ObjectInfo]) -> Files:
    return {name: info.etag for name, info in infos.items()}


def _everything(store: Store) -> Iterator[tuple[str, str, ObjectInfo]]:
    """Shard, name and what the storage says of every part file, latents before rejects."""
    for kind in (LATENTS, REJECTS):
        for name, info in store.infos(f"{kind}/"):
            if shard_id := _shard_of(name):
                yield shard_id, name, info


def _shard_of(name: str) -> str | None:
    parsed = parse_part_name(name)
    return parsed[0] if parsed else None


class PartFiles:
    """The part files of many shards, one after another; each shard is asked for once.

    An object store lists by prefix: one or two requests a shard, and none where there are no parts
    at all. A disk lists a whole folder: once, of which the files of shards that are not committed
    are kept. Those of one that is committed are looked up by the names that its manifest tells.
    """

    def __init__(self, store: Store, committed: CommittedShards) -> None:
        self.store, self.committed = store, committed
        self._lock = threading.Lock()
        self._on_disk = is_local(store.root)
        self._open: dict[str, Files] | None = None
        self._any = self._on_disk or store.has(REJECTS) or store.has(LATENTS)

    def of(self, shard_id: str) -> Files:
        """The files of all parts of a shard that is not committed."""
        if self._on_disk:
            return self._listed().pop(shard_id, {})
        return self._by_prefix(shard_id)

    def of_committed(self, record: ShardRecord) -> Files:
        """The files of a committed shard; on a disk their names alone."""
        if not self._on_disk:
            return self._by_prefix(record.shard)
        return dict.fromkeys(names_beside(self.store, record.shard, record.n_parts), "")

    def _by_prefix(self, shard_id: str) -> Files:
        if not self._any:
            return {}
        # A part's rejects are put before its latents and removed after them.
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
        found = _everything(self.store)
        while batch := list(islice(found, _BATCH)):
            committed = self.committed.among([shard_id for shard_id, _, _ in batch])
            yield from (file for file, done in zip(batch, committed, strict=True) if not done)
