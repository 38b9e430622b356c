"""A few samples out of a whole input, which is not held, nor read where that can be helped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

from pipeline.storage.counts import count_samples
from pipeline.storage.options import ONE_IMAGE, ReadOptions
from pipeline.storage.sample import Sample
from pipeline.storage.samples import read_samples
from pipeline.storage.shards import Shard, list_shards

_OPTIONS = ReadOptions(image_field=ONE_IMAGE)


def spread_samples(input_uri: str, limit: int) -> Iterator[Sample]:
    """Up to `limit` samples of `input_uri`, spread evenly over it, in its order, as a stream.

    Of several images with one webdataset key one is taken, as `invert_dataset` does by default.
    Of a folder the chosen files alone are read. The samples of archives and Parquet files are
    counted first; where there are more shards than `limit`, `limit` of them are
    opened, for their first sample. Raises as `list_shards` and `read_samples` do.
    """
    shards = list(list_shards(input_uri))
    if len(shards) > limit:
        for index in evenly(len(shards), limit):
            yield from _at(shards[index], [0])
        return
    ends = list(accumulate((count_samples(shard, None, _OPTIONS) for shard in shards), initial=0))
    chosen = evenly(ends[-1], limit)
    for shard, begin, end in zip(shards, ends, ends[1:], strict=False):
        yield from _at(shard, [place - begin for place in chosen if begin <= place < end])


def evenly(count: int, limit: int) -> list[int]:
    """Up to `limit` of the places 0..`count` - 1, the first and the last among them."""
    few = min(count, limit)
    return [step * (count - 1) // max(1, few - 1) for step in range(few)]


def _at(shard: Shard, places: Sequence[int]) -> Iterator[Sample]:
    """The samples at `places`, ascending, of a shard; nothing behind the last is read."""
    if not places:
        return
    if shard.is_slice:
        keys = shard.keys
        yield from read_samples(shard, {keys[place] for place in places}, _OPTIONS)
        return
    wanted = set(places)
    for place, sample in enumerate(islice(read_samples(shard, None, _OPTIONS), places[-1] + 1)):
        if place in wanted:
            yield sample
