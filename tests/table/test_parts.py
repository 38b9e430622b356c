"""Part files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError, TableError
from pipeline.storage import Store
from pipeline.table import open_table
from pipeline.table.parts import parse_part_name, part_name, read_metadata
from tests.table.rows import COLUMNS, face_row, reject_row, shard, state_of, write_shard, writer


def test_part_names_hold_shard_and_number() -> None:
    assert part_name("latents", "s-0", 7) == "latents/s-0-00007.parquet"
    assert parse_part_name("latents/s-0-00007.parquet") == ("s-0", 7)
    assert parse_part_name("rejects/s-00001-123456.parquet") == ("s-00001", 123456)


@pytest.mark.parametrize(
    "name", ["latents/s.parquet", "latents/s-7.parquet", "latents/s-000007.parquet", "x/s-00001"]
)
def test_other_names_are_not_parsed(name: str) -> None:
    assert parse_part_name(name) is None


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(writer(tmp_path / name), shard())
    first, second = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    assert first.names() == second.names()
    assert len(first.names()) == 6
    for name in first.names():
        assert first.get(name) == second.get(name), name


def test_a_part_record_holds_counts_and_hashes(tmp_path: Path) -> None:
    table = writer(tmp_path)
    summary = table.write_part(
        shard(), 3, samples=2, latents=[face_row("a")], rejects=[reject_row("b")]
    )
    assert (summary.part, summary.samples, summary.faces, summary.rejects) == (3, 2, 1, 1)
    for kind, digest in (("latents", summary.latents_sha256), ("rejects", summary.rejects_sha256)):
        content = (tmp_path / kind / "s-0-00003.parquet").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_a_part_without_a_face_gets_its_latents_file(tmp_path: Path) -> None:
    table = writer(tmp_path)
    table.write_part(shard(), 0, samples=1, latents=[], rejects=[reject_row("a")])
    stored = pq.read_table(tmp_path / "latents" / "s-0-00000.parquet")
    assert stored.num_rows == 0
    assert stored.schema.remove_metadata().equals(COLUMNS.latents_schema())


def test_a_part_that_is_written_again_is_the_same_part(root: str) -> None:
    table = writer(root)
    first, second = (
        table.write_part(shard(), 0, samples=2, latents=[face_row("a")], rejects=[reject_row("b")])
        for _ in range(2)
    )
    assert first == second


def test_a_late_writer_replaces_no_file(root: str) -> None:
    table = writer(root)
    rows = {"samples": 1, "latents": [face_row("a")], "rejects": []}
    table.write_part(shard(), 0, **rows)
    before = {name: table.store.get(name) for name in table.store.names()}
    for late, source in ((table, shard(etag="etag-0")), (writer(root, part_size=3), shard())):
        with pytest.raises(TableError, match=r"rejects/s-0-00000\.parquet' is there already"):
            late.write_part(source, 0, **rows)
    assert {name: table.store.get(name) for name in table.store.names()} == before


def test_the_first_of_two_slightly_different_results_is_kept(tmp_path: Path) -> None:
    table = writer(tmp_path)
    first = table.write_part(shard(), 0, samples=1, latents=[face_row("a")], rejects=[])
    other = face_row("a", l2=0.126)
    assert table.write_part(shard(), 0, samples=1, latents=[other], rejects=[]) == first
    table.commit_shard(shard(), [first])
    assert open_table(str(tmp_path)).verify()["faces"] == 1


def test_rejects_are_written_before_latents(tmp_path: Path) -> None:
    """Without a latents folder, the rejects are stored but the part does not exist."""
    table = writer(tmp_path)
    (tmp_path / "latents").write_bytes(b"")
    with pytest.raises(StorageError):
        table.write_part(shard(), 0, samples=1, latents=[], rejects=[reject_row("a")])
    assert (tmp_path / "rejects" / "s-0-00000.parquet").exists()
    (tmp_path / "latents").unlink()
    assert state_of(table, shard()).parts == {}


def test_rows_that_do_not_account_for_every_sample_are_refused(tmp_path: Path) -> None:
    table = writer(tmp_path)
    with pytest.raises(TableError, match="has 3 samples, but its rows account for 2"):
        table.write_part(shard(), 0, samples=3, latents=[face_row("a")], rejects=[reject_row("b")])
    assert table.store.names("latents/") == []


def test_a_sample_with_two_faces_counts_once(tmp_path: Path) -> None:
    faces = [face_row("a", 0), face_row("a", 1)]
    rejects = [reject_row("a", "face_too_small", 2)]
    summary = writer(tmp_path).write_part(shard(), 0, samples=1, latents=faces, rejects=rejects)
    assert (summary.samples, summary.faces, summary.rejects) == (1, 2, 1)


def test_the_footer_holds_key_and_metric_definitions(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard())
    metadata = read_metadata(table.store, "latents/s-0-00001.parquet")
    assert metadata["metrics"]["lpips"] == "AlexNet, version 0.1, 256 px"
    assert metadata["fingerprint"] == table.spec.fingerprint
    assert (metadata["shard"], metadata["shard_etag"]) == ("s-0", "etag-1")
    assert (metadata["part"], metadata["part_size"], metadata["samples"]) == (1, 4, 2)


def test_row_groups_are_small_enough_to_read_one_code(tmp_path: Path) -> None:
    table = writer(tmp_path, part_size=300)
    faces = [face_row(f"{i}") for i in range(300)]
    table.write_part(shard(), 0, samples=300, latents=faces, rejects=[])
    footer = pq.read_metadata(tmp_path / "latents" / "s-0-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [128, 128, 44]
