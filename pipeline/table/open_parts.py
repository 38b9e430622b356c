"""What the parts of open shards hold, by the part index or else by their footers."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table.part_index import indexed_parts
from pipeline.table.parts import COUNTS, LATENTS, part_name, read_metadata
from pipeline.table.stats import Counts

_THREADS = 16
# The index lacks fewer than a thousand parts of a run, which are read in about a second.
_READ_FOOTERS = 2000


def count_open_parts(store: Store, etags: Mapping[str, str]) -> tuple[Counts, bool]:
    """Add up latents files and their rejects; `etags` are those of their names.

    Returns the counts, and whether they are exact: scaled up where not all of them were read. A
    part that is gone meanwhile, or damaged, counts nothing: the next run does it again.
    """
    unread, total = dict(etags), Counts()
    for part in indexed_parts(store) if unread else ():
        name = part_name(LATENTS, part.shard, part.part)
        if unread.get(name) == part.latents_etag:
            del unread[name]
            total += part.counts
    with ThreadPoolExecutor(_THREADS) as pool:
        total = sum(pool.map(partial(_footer_counts, store), islice(unread, _READ_FOOTERS)), total)
    left = max(0, len(unread) - _READ_FOOTERS)
    return total.scaled(len(etags) / (len(etags) - left)) if left else total, not left


def _footer_counts(store: Store, name: str) -> Counts:
    try:
        metadata = read_metadata(store, name)
    except PipelineError:
        return Counts()
    counts: dict[str, Any] = {name: int(metadata.get(name) or 0) for name in COUNTS}
    return Counts(**counts)
