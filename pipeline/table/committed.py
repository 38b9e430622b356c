"""Which shards are committed, and how they stood in the input: 32 bytes a shard of an index.

Ids, etags and states are compared by Python's hashes of 64 bits, which chance keys anew in every
process: two of a million shards share one in one of ten million runs. A shard that is mistaken for
another one has its manifest read, and the state of one that has changed is taken for the old with
a probability of 2⁻⁶⁴.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.storage import Shard, Store, slice_number
from pipeline.table.audit import Audit
from pipeline.table.index import ShardEntry, all_entries
from pipeline.table.manifests import manifest_etags

# Columns of what is known: hash of the shard's id and of its state, counts.
_SHARD, _STATE, _SAMPLES, _PARTS = range(4)
_BATCH = 4096

_Integers = npt.NDArray[np.int64]


class Committed(NamedTuple):
    """What a committed shard holds: numbers of samples and of parts."""

    samples: int
    parts: int


class CommittedShards:
    """The shards that have a manifest, as one listing shows them, and what the index says of them.

    Of those that stand in no index ids and etags are held, some 250 bytes each. `distrusted` is set
    where a line of the index that `Audit` drew is not what its manifest says: all shards stand in
    no index then.
    """

    def __init__(self, store: Store) -> None:
        self._unindexed: dict[str, str] = {}
        self.slices = array("q")  # numbers of a folder's slices
        audit = Audit()
        indexed = _indexed(store, audit)
        self.distrusted = audit.lies(store)
        self._known = self._listed(store, *(_nothing() if self.distrusted else indexed))

    def _listed(self, store: Store, manifests: _Integers, known: _Integers) -> _Integers:
        """The columns of `known` whose manifests are there, by shard; the rest are noted."""
        true = np.zeros(len(manifests), bool)
        listing = manifest_etags(store)
        while batch := list(islice(listing, _BATCH)):
            places, found = places_of(manifests, [hash(pair) for pair in batch])
            true[places[found]] = True
            self._unindexed.update(batch[index] for index in np.flatnonzero(~found))
            numbers = (slice_number(shard_id) for shard_id, _ in batch)
            self.slices.extend(number for number in numbers if number is not None)
        known = known[:, true]
        return known[:, np.argsort(known[_SHARD])]

    def __contains__(self, shard_id: object) -> bool:
        return isinstance(shard_id, str) and self.among([shard_id])[0]

    def among(self, shard_ids: Sequence[str]) -> list[bool]:
        """Of each of these whether it is committed."""
        _, found = places_of(self._known[_SHARD], [hash(shard_id) for shard_id in shard_ids])
        pairs = zip(shard_ids, found.tolist(), strict=True)
        return [is_known or shard_id in self._unindexed for shard_id, is_known in pairs]

    def find(self, shards: Sequence[Shard]) -> list[Committed | None]:
        """Of each of these what the index says, if it is committed as it stands in the input."""
        if not self._known.size:
            return [None] * len(shards)
        places, found = places_of(self._known[_SHARD], [hash(shard.shard_id) for shard in shards])
        states = [_state(shard.source, shard.etag, shard.size) for shard in shards]
        same = found & (self._known[_STATE, places] == states)
        counts = self._known[_SAMPLES : _PARTS + 1, places].T.tolist()
        rows = zip(counts, same.tolist(), strict=True)
        return [Committed(*count) if is_same else None for count, is_same in rows]

    def part_counts(self, shard_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Of each of these how many parts it has if it is committed; -1 if no index says that."""
        places, found = places_of(self._known[_SHARD], [hash(shard_id) for shard_id in shard_ids])
        if not self._known.size:
            return np.full(len(shard_ids), -1, np.int64)
        return np.where(found, self._known[_PARTS, places], -1)

    def unindexed_etag(self, shard_id: str) -> str | None:
        """The etag of the shard's manifest, if that is in no index."""
        return self._unindexed.get(shard_id)


def _nothing() -> tuple[_Integers, _Integers]:
    return _EMPTY[-1].copy(), _EMPTY[:-1]


def _indexed(store: Store, audit: Audit) -> tuple[_Integers, _Integers]:
    """All that the index says: hashes of ids with their manifests' etags [n], sorted; the columns
    that they belong to [4, n].
    """
    found = [_EMPTY]
    for entries in all_entries(store):
        audit.add(entries)
        found.append(_columns(entries))
    columns = np.concatenate(found, axis=1)
    columns = columns[:, np.argsort(columns[-1])]
    return columns[-1].copy(), columns[:-1]


_EMPTY = np.empty((5, 0), np.int64)


def _columns(entries: Sequence[ShardEntry]) -> _Integers:
    """Shard, state, samples, parts, manifest: [5, n]."""
    rows = [
        (
            hash(entry.shard),
            _state(entry.uri, entry.etag, entry.size),
            entry.samples,
            entry.parts,
            hash((entry.shard, entry.manifest_etag)),
        )
        for entry in entries
    ]
    return np.array(rows, np.int64).reshape(-1, 5).T


def _state(uri: str, etag: str, size: int) -> int:
    return hash((uri, etag, size))


def places_of(
    sorted_keys: _Integers, keys: Sequence[int]
) -> tuple[_Integers, npt.NDArray[np.bool_]]:
    """Where in `sorted_keys` each of `keys` is, and whether it is there at all: [n] each."""
    wanted = np.array(keys, np.int64)
    places = np.searchsorted(sorted_keys, wanted)
    if not len(sorted_keys):
        return places, np.zeros(len(keys), bool)
    places = np.minimum(places, len(sorted_keys) - 1)
    return places, sorted_keys[places] == wanted
