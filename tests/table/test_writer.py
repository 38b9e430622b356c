"""Resumed runs and commits of shards."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import FingerprintError, InputError, TableError
from pipeline.storage import Store
from pipeline.table import Columns, Counts, TableWriter, open_table
from pipeline.table.part_index import PartIndex
from pipeline.table.resume import States
from pipeline.table.runs import put_run
from pipeline.table.spec import read_spec
from tests.table.rows import (
    COUNTS_OF_ONE,
    DESCRIPTION,
    face_row,
    reject_row,
    shard,
    state_of,
    write_shard,
    writer,
)


def test_a_committed_shard_is_done(root: str) -> None:
    table = writer(root)
    assert not state_of(table, shard()).done
    write_shard(table, shard())
    state = state_of(writer(root), shard())
    assert state.done
    assert state.stale == ()
    assert state.committed == Counts(shards=1, samples=6, parts=2)


def test_an_interrupted_shard_keeps_its_parts(root: str) -> None:
    write_shard(writer(root), shard(), commit=False)
    table = writer(root)
    state = state_of(table, shard())
    assert not state.done
    assert sorted(state.parts) == [0, 1]
    assert state.stale == ()
    assert (state.parts[0].samples, state.parts[0].faces, state.parts[0].rejects) == (4, 4, 2)
    table.commit_shard(shard(), state.parts.values())
    assert open_table(root).verify() == COUNTS_OF_ONE


def test_resuming_and_running_through_give_the_same_table(tmp_path: Path) -> None:
    write_shard(writer(tmp_path / "through"), shard())
    table = writer(tmp_path / "resumed")
    write_shard(table, shard(), commit=False)
    table.store.remove("latents/s-0-00001.parquet")
    state = state_of(table, shard())
    assert (sorted(state.parts), state.stale) == ([0], ("rejects/s-0-00001.parquet",))
    again = table.write_part(
        shard(), 1, samples=2, latents=[], rejects=[reject_row("e"), reject_row("f", "crashed")]
    )
    table.commit_shard(shard(), [*state.parts.values(), again])
    through, resumed = Store(str(tmp_path / "through")), table.store
    assert through.names() == resumed.names()
    assert all(through.get(name) == resumed.get(name) for name in through.names())


def test_states_of_many_shards_equal_states_of_each(root: str) -> None:
    table = writer(root)
    shards = [shard(f"s-{i}") for i in range(5)]
    write_shard(table, shards[1])
    write_shard(table, shards[2], commit=False)
    write_shard(table, shard("s-3", "old"))
    write_shard(table, shard("s-4", "old"), commit=False)
    states = list(table.states(shards))
    assert states == [state_of(table, source) for source in shards]
    assert [state.done for state in states] == [False, True, False, False, False]
    assert [len(state.parts) for state in states] == [0, 0, 2, 0, 0]
    assert [len(state.stale) for state in states] == [0, 0, 0, 5, 4]


@pytest.mark.parametrize("change", [{"etag": "etag-2"}, {"size": 101}])
def test_a_changed_shard_is_done_again_whole(root: str, change: dict[str, object]) -> None:
    table = writer(root)
    write_shard(table, shard())
    write_shard(table, shard("s-0-00000"))  # whose files start with the name of the other
    changed = replace(shard(), **change)
    state = state_of(table, changed)
    assert not state.done
    assert state.parts == {}
    assert len(state.stale) == 5
    table.clear(state)
    table.clear(state)
    assert state_of(table, changed).stale == ()
    assert state_of(table, shard("s-0-00000")).done
    summary = table.write_part(changed, 0, samples=1, latents=[face_row("a")], rejects=[])
    table.commit_shard(changed, [summary])
    assert open_table(root).verify()["faces"] == 4 + 1


def test_parts_of_another_part_size_are_not_mixed_in(tmp_path: Path) -> None:
    write_shard(writer(tmp_path, part_size=4), shard(), commit=False)
    state = state_of(writer(tmp_path, part_size=5), shard())
    assert state.parts == {}
    assert len(state.stale) == 4


def test_a_committed_shard_stays_done_with_another_part_size(tmp_path: Path) -> None:
    write_shard(writer(tmp_path, part_size=4), shard())
    assert state_of(writer(tmp_path, part_size=5), shard()).done


def test_a_damaged_part_is_done_again(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard(), commit=False)
    (tmp_path / "latents" / "s-0-00000.parquet").write_bytes(b"PAR1 nothing PAR1")
    state = state_of(table, shard())
    assert sorted(state.parts) == [1]
    assert "latents/s-0-00000.parquet" in state.stale


@pytest.mark.parametrize("end", [b"", b"\0\0\0\0PAR1", b"\xff\xff\xff\x7fPAR1"])
def test_a_part_with_a_damaged_footer_is_done_again(root: str, end: bytes) -> None:
    """For a damaged footer before a valid magic number Arrow raises OSError."""
    table = writer(root)
    write_shard(table, shard(), commit=False)
    name = "latents/s-0-00000.parquet"
    content = table.store.get(name)
    footer = int.from_bytes(content[-8:-4], "little")
    damaged = content[: -8 - footer] + b"\xee" * footer + (end or content[-8:])
    table.store.put(name, damaged)
    (state,) = table.states([shard()])
    assert sorted(state.parts) == [1]
    assert name in state.stale


def test_a_shard_from_another_place_is_refused(root: str) -> None:
    table = writer(root)
    write_shard(table, shard())
    with pytest.raises(InputError, match=r"'s3://in/s-0\.tar'.*'s3://elsewhere/s-0\.tar'"):
        state_of(table, shard(uri="s3://elsewhere/s-0.tar"))


def test_a_shard_is_not_committed_without_all_its_parts(tmp_path: Path) -> None:
    table = writer(tmp_path)
    parts = [
        table.write_part(shard(), part, samples=1, latents=[face_row(f"{part}")], rejects=[])
        for part in range(3)
    ]
    with pytest.raises(TableError, match=r"cannot be committed with parts \[0, 2\]"):
        table.commit_shard(shard(), [parts[0], parts[2]])
    with pytest.raises(TableError, match=r"latents/s-0-00002\.parquet' is not one of its parts"):
        table.commit_shard(shard(), parts[:2])
    table.store.remove("rejects/s-0-00001.parquet")
    with pytest.raises(TableError, match=r"rejects/s-0-00001\.parquet' is missing"):
        table.commit_shard(shard(), parts)
    assert not state_of(table, shard()).done


def test_a_shard_without_samples_can_be_committed(tmp_path: Path) -> None:
    table = writer(tmp_path)
    table.commit_shard(shard(), [])
    assert state_of(table, shard()).done
    assert open_table(str(tmp_path)).verify()["shards"] == 1


def test_a_commit_on_a_disk_lists_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every part of a table would slow down all later commits."""
    table = writer(tmp_path)
    write_shard(table, shard("s-1"))
    write_shard(table, shard(), commit=False)
    parts = state_of(table, shard()).parts.values()
    listed: list[object] = []
    monkeypatch.setattr(os, "scandir", listed.append)
    table.commit_shard(shard(), parts)
    assert listed == []


def test_a_writer_can_be_pickled(root: str) -> None:
    table: TableWriter = pickle.loads(pickle.dumps(writer(root)))
    write_shard(table, shard())
    assert state_of(table, shard()).done


def test_the_spec_is_written_once(root: str) -> None:
    writer(root)
    before = Store(root).get("_table.json")
    writer(root, config={"batch_size": 64})
    assert Store(root).get("_table.json") == before


def test_other_settings_are_refused_and_listed(root: str) -> None:
    writer(root)
    settings = {"weights": "abc", "steps": 5, "alignment": {"faces": "all"}, "extra": 1}
    with pytest.raises(FingerprintError) as caught:
        writer(root, settings=settings)
    lines = str(caught.value).splitlines()
    assert root in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        '--faces: "largest" in the table, "all" asked for',
        "extra: null in the table, 1 asked for",
        "--steps: 3 in the table, 5 asked for",
        "to continue it as it was made: --faces largest --steps 3",
    ]


def test_an_earlier_value_is_not_stored(root: str) -> None:
    before = writer(root).spec.fingerprint
    settings = dict(DESCRIPTION.settings)
    same = writer(root, settings={**settings, "precision": "float32"})
    assert same.spec.fingerprint == before
    with pytest.raises(FingerprintError, match="as it was made: --precision float32"):
        writer(root, settings={**settings, "precision": "tf32"})
    aligned = {**settings["alignment"], "icc": "ignore"}
    assert writer(root, settings={**settings, "alignment": aligned}).spec.fingerprint == before
    with pytest.raises(FingerprintError, match="as it was made: --icc ignore"):
        writer(root, settings={**settings, "alignment": {**aligned, "icc": "apply"}})


def test_flags_continue_how_archives_are_read(root: str) -> None:
    layout = dict(DESCRIPTION.layout)
    before = writer(root).store.get("_table.json")
    assert b"kept" not in before
    writer(root, layout={**layout, "image_field": "all", "image_column": None})
    changed = {**layout, "image_field": "one", "image_column": "image"}
    kept = Columns(6, kept=(("label", "int64"), ("caption", "string")))
    with pytest.raises(FingerprintError) as caught:
        writer(root, layout=changed, columns=kept)
    assert str(caught.value).splitlines()[-1] == (
        "to continue it as it was made: --image-field all no --keep-columns no --image-column"
    )
    other = f"{root}-2"
    writer(other, layout=changed, columns=kept, config={"keep_columns": "label,caption"})
    again = writer(other, layout=changed, columns=kept)
    assert again.spec.columns == read_spec(again.store).columns == kept
    with pytest.raises(FingerprintError) as caught:
        writer(other)
    assert str(caught.value).splitlines()[-1] == (
        "to continue it as it was made: --keep-columns label,caption --image-column image "
        "--image-field one"
    )


@pytest.mark.parametrize("kept", [[["a", "binary"]], [["a"]], 5, [["a", "int64", "b"]]])
def test_kept_fields_of_unknown_type_are_refused(root: str, kept: object) -> None:
    store = writer(root).store
    document = json.loads(store.get("_table.json"))
    document["columns"]["kept"] = kept
    store.put("_table.json", json.dumps(document).encode())
    with pytest.raises(TableError, match="is incomplete"):
        read_spec(store)


def test_other_columns_or_slices_are_refused(tmp_path: Path) -> None:
    writer(tmp_path)
    with pytest.raises(FingerprintError, match=r'--latent-dtype: "float16" in the table'):
        writer(tmp_path, columns=Columns(6, "float32"))
    with pytest.raises(FingerprintError, match="--files-per-shard: 1000 in the table, 10"):
        writer(tmp_path, layout={"files_per_shard": 10})


def test_the_fingerprint_follows_the_settings_alone() -> None:
    same = replace(DESCRIPTION, config={"workers": 100}, layout={})
    assert same.fingerprint == DESCRIPTION.fingerprint
    reordered = dict(reversed(DESCRIPTION.settings.items()))
    assert replace(DESCRIPTION, settings=reordered).fingerprint == DESCRIPTION.fingerprint
    assert replace(DESCRIPTION, settings={"steps": 4}).fingerprint != DESCRIPTION.fingerprint


def test_runs_are_recorded_by_start_and_id(tmp_path: Path) -> None:
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    name = put_run(writer(tmp_path).store, start, "ab12", {"exit_code": 0})
    assert name == "_runs/20260102T030405Z-ab12.json"
    assert b'"exit_code": 0' in Store(str(tmp_path)).get(name)


def test_secrets_are_written_to_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "planted-secret-0123456789"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    config = {"endpoint": f"http://x?k={secret}", "nested": [{"password": "also-planted"}]}
    table = writer(tmp_path, config=config)
    write_shard(table, shard())
    put_run(table.store, datetime.now(UTC), "x", {"error": f"denied for {secret}"})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert secret.encode() not in path.read_bytes(), path
        assert b"also-planted" not in path.read_bytes(), path


def test_clearing_a_shard_on_a_disk_lists_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of all part files take gigabytes of memory for 10^9 images."""
    table = writer(tmp_path)
    for name in ("s-0", "s-1"):
        write_shard(table, shard(name))
    states = States(table.store, table.part_key, PartIndex(table.store))
    listed: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", listed.append)
        (state,) = states.of([shard("s-0", "etag-2")])
    assert listed == []
    table.clear(state)
    assert [name for name in table.store.names() if "s-0" in name] == []
