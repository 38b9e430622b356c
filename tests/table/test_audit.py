"""Forged rows of the index do not reach the card, the status or a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.table import Counts, open_table
from pipeline.table.audit import Audit
from pipeline.table.card import card_text
from pipeline.table.shard_index import ShardRecord, table_stats, write_index
from pipeline.table.shard_records import manifest_etags, manifest_name, read_shard_record
from pipeline.table.status import table_status
from tests.table.rows import shard, write_shard, writer

SHARDS = [shard(f"s-{number}") for number in range(3)]
FIGURES = {
    name: json.dumps({"reasons": reasons, "identified": many, "sums": {}, "counts": {}})
    for name, reasons, many in (("identified", {}, 10**9), ("reasons", {"no_face": 10**9}, 0))
}
FORGERIES: list[dict[str, Any]] = [
    *({name: 10**9} for name in ("samples", "faces", "rejects")),
    {"samples": -(10**9)},
    {"samples": 0, "faces": 0},
    *({"figures": text} for text in (*FIGURES.values(), "{", "[]", '{"sums": 1}')),
]


@pytest.fixture
def entries(tmp_path: Path) -> list[ShardRecord]:
    """Correct index rows of three shards; no index is written yet."""
    table = writer(tmp_path)
    for source in SHARDS:
        write_shard(table, source)
    return [
        table.with_manifest_etag(read_shard_record(table.store, source.shard_id))
        for source in SHARDS
    ]


def forge(root: Path, entries: list[ShardRecord], **forgery: Any) -> None:
    write_index(writer(root).store, [entries[0], replace(entries[1], **forgery), entries[2]])


@pytest.mark.parametrize("forgery", FORGERIES)
def test_card_and_status_ignore_forged_index_rows(
    tmp_path: Path, entries: list[ShardRecord], forgery: dict[str, Any]
) -> None:
    without = card_text(open_table(str(tmp_path)))
    forge(tmp_path, entries, **forgery)
    assert table_stats(writer(tmp_path).store).counts.samples == 18
    assert card_text(open_table(str(tmp_path))) == without
    status = table_status(str(tmp_path))
    assert (status.samples, status.faces, status.rejects) == (18, 12, 12)


@pytest.mark.parametrize(
    "forgery", [{"etag": "etag-2"}, {"size": 101}, {"n_parts": 3}, {"samples": 7}]
)
def test_a_forged_row_does_not_commit_a_changed_shard(
    tmp_path: Path, entries: list[ShardRecord], forgery: dict[str, Any]
) -> None:
    forge(tmp_path, entries, **forgery)
    state = {name: value for name, value in forgery.items() if name in ("etag", "size")}
    table, changed = writer(tmp_path), replace(SHARDS[1], **state)
    states = list(table.states([SHARDS[0], changed, SHARDS[2]]))
    done = Counts(shards=1, samples=6, parts=2)
    assert [state.committed for state in states] == [done, None if state else done, done]
    assert table.store.names("_index/") == [], "the forged index is removed"


def test_index_rows_that_match_are_used(tmp_path: Path, entries: list[ShardRecord]) -> None:
    audit = Audit(sums=True)
    assert list(audit.sample(entries)) == entries
    assert not audit.finds_mismatch(writer(tmp_path).store)


def test_all_rows_of_a_small_index_are_compared(tmp_path: Path, entries: list[ShardRecord]) -> None:
    forgery = replace(entries[1], left_out='{".txt": 1}')  # rows are not drawn by this field
    for whole, expected in ((3, {True}), (2, {True, False})):
        answers = set()
        for _ in range(40):
            audit = Audit(each=1, whole=whole)
            audit.add([entries[0], forgery])
            audit.add([entries[2]])
            answers.add(audit.finds_mismatch(writer(tmp_path).store))
        assert answers == expected


def test_a_manifest_replaced_by_another_run_is_no_mismatch(
    tmp_path: Path, entries: list[ShardRecord]
) -> None:
    """It is replaced after the listing and before the comparison."""
    table = writer(tmp_path)
    table.store.remove(manifest_name("s-0"))
    manifest = replace(read_shard_record(table.store, "s-1"), etag="etag-20")
    manifest.write(table.store, replace=True)
    assert dict(manifest_etags(table.store))["s-1"] != entries[1].manifest_etag
    audit = Audit()
    audit.add(entries)
    assert not audit.finds_mismatch(table.store)


def test_a_row_with_half_a_sum_is_drawn(tmp_path: Path, entries: list[ShardRecord]) -> None:
    """A single row of 49,001 claims half of all faces."""
    audit = Audit(sums=True, each=64)
    many = [replace(entries[0], shard=f"x-{number}") for number in range(1000)]
    for number in range(50):
        audit.add([replace(entries[1], faces=200_000)] if number == 20 else many)
    assert audit.finds_mismatch(writer(tmp_path).store), "64 draws miss it only by a rare chance"
