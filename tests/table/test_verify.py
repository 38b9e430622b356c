"""verify() finds what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TableError
from pipeline.storage import Store
from pipeline.table import open_table
from tests.table.rows import COUNTS_OF_ONE, face_row, reject_row, shard, write_shard, writer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_shard(writer(tmp_path), shard())
    return Store(str(tmp_path))


def broken(store: Store, match: str, *, checksums: bool = True) -> None:
    with pytest.raises(TableError, match=match) as caught:
        open_table(store.root).verify(checksums=checksums)
    assert store.root in str(caught.value)
    assert "\n" not in str(caught.value)


def change_manifest(store: Store, **changes: Any) -> None:
    manifest = json.loads(store.get("_shards/s-0.json"))
    store.put("_shards/s-0.json", json.dumps({**manifest, **changes}).encode())


def test_a_sound_table_gives_its_counts(filled: str) -> None:
    twice = {name: 2 * count for name, count in COUNTS_OF_ONE.items()}
    assert open_table(filled).verify() == twice
    assert open_table(filled).verify(checksums=False) == twice


def test_samples_in_are_samples_out(store: Store) -> None:
    counts = open_table(store.root).verify()
    assert counts["samples"] == counts["samples_with_faces"] + counts["samples_rejected"] == 6


def test_rejects_of_two_images_may_share_an_id(tmp_path: Path) -> None:
    """Face 0 of 'a' and the image 'a#0'."""
    table = writer(tmp_path)
    rejects = [reject_row("a", "face_too_small", 0), reject_row("a#0", "undecodable")]
    part = table.write_part(shard(), 0, samples=2, latents=[face_row("a", 1)], rejects=rejects)
    table.commit_shard(shard(), [part])
    assert open_table(str(tmp_path)).verify()["rejects"] == 2


def test_a_manifest_that_adds_up_otherwise_is_found(store: Store) -> None:
    figures = json.loads(store.get("_shards/s-0.json"))["figures"]
    change_manifest(store, figures={**figures, "identified": 3})
    broken(store, "other figures than its manifest", checksums=False)


@pytest.mark.parametrize("kind", ["latents", "rejects"])
def test_a_missing_part_is_found(store: Store, kind: str) -> None:
    store.remove(f"{kind}/s-0-00001.parquet")
    broken(store, f"{kind}/s-0-00001.parquet': not found")


def test_a_part_with_other_bytes_is_found(store: Store) -> None:
    name = "latents/s-0-00000.parquet"
    content = bytearray(store.get(name))
    content[100] ^= 1
    store.put(name, bytes(content))
    broken(store, r"is not the file that its manifest names \(SHA-256\)")


def test_a_truncated_part_is_found_without_checksums(store: Store) -> None:
    name = "latents/s-0-00000.parquet"
    store.put(name, store.get(name)[:-100])
    broken(store, "is damaged", checksums=False)


def test_a_part_under_the_name_of_another_is_found(store: Store) -> None:
    store.put("latents/s-0-00001.parquet", store.get("latents/s-0-00000.parquet"))
    broken(store, "made with another part", checksums=False)


def test_a_part_of_another_state_of_the_shard_is_found(store: Store, tmp_path: Path) -> None:
    other = writer(tmp_path / "other")
    other.write_part(shard(etag="etag-2"), 0, samples=1, latents=[face_row("a")], rejects=[])
    for kind in ("latents", "rejects"):
        name = f"{kind}/s-0-00000.parquet"
        store.put(name, other.store.get(name))
    broken(store, "made with another shard_etag", checksums=False)


def test_a_face_that_is_there_twice_is_found(tmp_path: Path) -> None:
    table = writer(tmp_path)
    parts = [
        table.write_part(shard(), part, samples=1, latents=[face_row("a")], rejects=[])
        for part in (0, 1)
    ]
    table.commit_shard(shard(), parts)
    broken(table.store, "shard 's-0' holds rows of latents twice")


@pytest.mark.parametrize("count", ["samples", "faces", "rejects"])
def test_a_manifest_with_other_counts_is_found(store: Store, count: str) -> None:
    change_manifest(store, **{count: 7})
    broken(store, rf"holds \d {count}, its manifest says 7")


def test_a_damaged_manifest_is_found(store: Store) -> None:
    store.put("_shards/s-0.json", b"{}")
    with pytest.raises(TableError, match="is not a shard manifest"):
        open_table(store.root).verify()


def test_parts_without_a_manifest_are_found(store: Store) -> None:
    write_shard(writer(store.root), shard("s-1"), commit=False)
    broken(store, r"'latents/s-1-00000.parquet' belongs to no committed shard.*and 3 more problems")


def test_a_stray_file_is_found(store: Store) -> None:
    store.put("latents/copy of s-0.parquet", b"")
    broken(store, "'latents/copy of s-0.parquet' belongs to no committed shard")


def test_a_leftover_of_a_killed_writer_is_no_stray_file(store: Store) -> None:
    (Path(store.root) / "latents" / ".s-0-00000.parquet.1-ab.tmp").write_bytes(b"half")
    assert open_table(store.root).verify() == COUNTS_OF_ONE
