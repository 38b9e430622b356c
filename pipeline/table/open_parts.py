"""What the parts of open shards hold, by the part index or else by their footers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table.part_index import part_entries
from pipeline.table.parts import COUNTS, LATENTS, part_name, read_metadata

_THREADS = 16
# The index lacks fewer than a thousand parts of a run, which are read in about a second.
_READ_FOOTERS = 2000


@dataclass
class OpenCounts:
    """Sums over open parts; scaled up, and not `exact`, where not all of them were read."""

    samples: int = 0
    faces: int = 0
    rejects: int = 0
    exact: bool = True


def count_open_parts(store: Store, etags: Mapping[str, str]) -> OpenCounts:
    """Return what latents files and their rejects add up to; `etags` are those of their names.

    A part that is gone meanwhile, or damaged, counts nothing: the next run does it again.
    """
    if not etags:
        return OpenCounts()
    unread, found = dict(etags), OpenCounts()
    for entry in part_entries(store):
        name = part_name(LATENTS, entry.shard, entry.part)
        if unread.get(name) == entry.latents_etag:
            del unread[name]
            _add(found, (getattr(entry, count) for count in COUNTS))
    with ThreadPoolExecutor(_THREADS) as pool:
        for counts in pool.map(partial(_footer_counts, store), islice(unread, _READ_FOOTERS)):
            _add(found, counts)
    left = max(0, len(unread) - _READ_FOOTERS)
    return _scaled(found, len(etags) / (len(etags) - left)) if left else found


def _footer_counts(store: Store, name: str) -> Iterable[int]:
    try:
        metadata = read_metadata(store, name)
    except PipelineError:
        return (0,) * len(COUNTS)
    return (int(metadata.get(count) or 0) for count in COUNTS)


def _add(found: OpenCounts, counts: Iterable[int]) -> None:
    for name, count in zip(COUNTS, counts, strict=True):
        setattr(found, name, getattr(found, name) + count)


def _scaled(found: OpenCounts, scale: float) -> OpenCounts:
    counts = {name: round(getattr(found, name) * scale) for name in COUNTS}
    return OpenCounts(**counts, exact=False)
