"""What a whole table holds, added up from its index: no row is read, nor a file of each shard."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.storage import LeftOut, Store
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
        """Of the table in `store`; `TableError` if its index or a manifest is damaged."""
        totals = cls()
        totals.figures = Figures.total(totals._counted(entry) for entry in shard_entries(store))
        return totals

    def _counted(self, entry: ShardEntry) -> Figures:
        self.shards += 1
        self.samples += entry.samples
        self.faces += entry.faces
        self.rejects += entry.rejects
        self.empty_shards += not entry.samples
        self.left_out.merge(LeftOut.from_text(entry.left_out))
        return Figures.from_text(entry.figures)
