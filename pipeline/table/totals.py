"""What a whole table holds, added up from its index: no row is read, nor a file of each shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import TableError
from pipeline.storage import LeftOut, Store
from pipeline.table.audit import WHOLE, Audit
from pipeline.table.figures import Figures
from pipeline.table.index import ShardEntry, shard_entries


@dataclass
class Totals:
    """Counts and figures of the committed shards; `left_out` is what their readers passed over."""

    shards: int = 0
    samples: int = 0
    faces: int = 0
    rejects: int = 0
    empty_shards: int = 0  # that gave no sample
    figures: Figures = field(default_factory=Figures)
    left_out: LeftOut = field(default_factory=LeftOut)

    @classmethod
    def of(cls, store: Store) -> Totals:
        """Of the table in `store`; `TableError` if a manifest is damaged.

        By the index, of which `Audit` holds some lines against their manifests; by the manifests
        alone where one of them lies, or cannot be read.
        """
        audit = Audit(sums=True, whole=WHOLE)
        try:
            totals = cls._sum(audit.watched(shard_entries(store)))
        except (TableError, ValueError):
            return cls._sum(shard_entries(store, by_manifests=True))
        if audit.lies(store):
            return cls._sum(shard_entries(store, by_manifests=True))
        return totals

    @classmethod
    def _sum(cls, entries: Iterable[ShardEntry]) -> Totals:
        totals = cls()
        totals.figures = Figures.total(totals._counted(entry) for entry in entries)
        return totals

    def _counted(self, entry: ShardEntry) -> Figures:
        self.shards += 1
        self.samples += entry.samples
        self.faces += entry.faces
        self.rejects += entry.rejects
        self.empty_shards += not entry.samples
        self.left_out.merge(LeftOut.from_text(entry.left_out))
        return Figures.from_text(entry.figures)
