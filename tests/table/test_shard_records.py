"""Manifests of shards."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.errors import TableError
from pipeline.metrics.registry import PER_STEP
from pipeline.storage import Store
from pipeline.table import Counts, PartRecord, ShardRecord
from pipeline.table.shard_records import manifest_ids, manifest_name, read_shard_record
from pipeline.table.stats import MetricSums, Stats
from tests.table.rows import shard

FIGURES = Stats(
    Counts(reasons=Counter({"no_face": 1})),
    MetricSums(3, dict.fromkeys(PER_STEP, (0.5,)), dict.fromkeys(PER_STEP, (3,))),
).figures_text()
PARTS = [
    PartRecord("s-0", 0, "key", 4, 3, 1, "aa", "bb", figures=FIGURES),
    PartRecord("s-0", 1, "key", 2, 0, 2, "cc", "dd", figures=Stats().figures_text()),
]


def manifest(etag: str = "etag-1", part_size: int = 4) -> ShardRecord:
    return ShardRecord.of(shard(etag=etag), PARTS, "fingerprint", part_size)


def test_a_manifest_is_read_as_written(root: str) -> None:
    store = Store(root)
    manifest().write(store)
    assert read_shard_record(store, "s-0") == manifest()
    assert manifest_ids(store) == ["s-0"]


def test_the_same_commit_twice_is_harmless(root: str) -> None:
    store = Store(root)
    manifest().write(store)
    manifest().write(store)
    assert read_shard_record(store, "s-0") == manifest()


@pytest.mark.parametrize("late", [manifest(etag="etag-0"), manifest(part_size=3)])
def test_a_manifest_does_not_replace_another(root: str, late: ShardRecord) -> None:
    store = Store(root)
    assert manifest().write(store)
    assert not late.write(store)
    assert read_shard_record(store, "s-0") == manifest()
    assert late.write(store, replace=True)
    assert read_shard_record(store, "s-0") == late


def test_a_damaged_manifest_is_named(root: str) -> None:
    store = Store(root)
    store.put(manifest_name("s-0"), b'{"shard": "s-0"}')
    with pytest.raises(TableError, match=r"_shards/s-0\.json"):
        read_shard_record(store, "s-0")
    store.put(manifest_name("s-0"), b"[" * 200_000)
    with pytest.raises(TableError, match=r"_shards/s-0\.json' is not JSON"):
        read_shard_record(store, "s-0")


def test_the_manifest_holds_files_that_readers_passed_over(root: str) -> None:
    store = Store(root)
    left_out = {".json": 3, "(hidden)": 1}
    written = ShardRecord.of(shard(), PARTS, "fingerprint", 4, left_out)
    written.write(store)
    assert read_shard_record(store, "s-0") == written
    assert read_shard_record(store, "s-0").counts.left_out == left_out


def test_a_manifest_of_earlier_versions_passed_over_nothing(root: str) -> None:
    """Without such files a manifest has the bytes of earlier versions."""
    store = Store(root)
    manifest().write(store)
    assert b"left_out" not in store.get(manifest_name("s-0"))
    assert read_shard_record(store, "s-0").counts.left_out == {}


@pytest.mark.parametrize("wrong", ['"x"', '{".json": "3"}', "[]"])
def test_invalid_counts_of_a_manifest_are_reported(root: str, wrong: str) -> None:
    store = Store(root)
    manifest().write(store)
    text = store.get(manifest_name("s-0")).decode().rstrip().removesuffix("}")
    store.put(manifest_name("s-0"), f'{text}, "left_out": {wrong}}}'.encode())
    with pytest.raises(TableError, match="'left_out' is not a JSON object of counts"):
        read_shard_record(store, "s-0")
