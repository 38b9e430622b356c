"""Which part files a shard has: by listing, as parts stand in no list of their own."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Container, Iterator

from pipeline.storage import Store, is_local
from pipeline.table.parts import LATENTS, REJECTS, parse_part_name


def files_of(store: Store, kind: str, shard_id: str) -> Iterator[str]:
    """The names of the files of one kind that belong to parts of a shard."""
    for name in store.names(f"{kind}/{shard_id}-"):
        # "x-1-00000" is a part of the shard "x-1", not of "x".
        parsed = parse_part_name(name)
        if parsed and parsed[0] == shard_id:
            yield name


class PartFiles:
    """The part files of many shards, one after another.

    An object store lists by prefix: one or two requests a shard, and none where there are no parts
    at all. A disk lists a whole folder: once, of which the files of shards that are not committed
    are kept; and once more if one of the others is asked for.
    """

    def __init__(self, store: Store, committed: Container[str]) -> None:
        self.store, self.committed = store, committed
        self._lock = threading.Lock()
        self._on_disk = is_local(store.root)
        self._open: dict[str, list[str]] | None = None
        self._all: dict[str, list[str]] | None = None
        self._any = self._on_disk or store.has(REJECTS) or store.has(LATENTS)

    def of(self, shard_id: str) -> list[str]:
        """The names of all files of parts of the shard."""
        if self._on_disk:
            return self._listed(shard_id).get(shard_id, [])
        if not self._any:
            return []
        # A part's rejects are put before its latents and removed after them.
        rejects = list(files_of(self.store, REJECTS, shard_id))
        return [*files_of(self.store, LATENTS, shard_id), *rejects] if rejects else []

    def _listed(self, shard_id: str) -> dict[str, list[str]]:
        with self._lock:
            if shard_id in self.committed:
                if self._all is None:
                    self._all = self._list(())
                return self._all
            if self._open is None:
                self._open = self._list(self.committed)
            return self._open

    def _list(self, left_out: Container[str]) -> dict[str, list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for kind in (LATENTS, REJECTS):
            for name in self.store.names(f"{kind}/"):
                parsed = parse_part_name(name)
                if parsed and parsed[0] not in left_out:
                    files[parsed[0]].append(name)
        return dict(files)
