"""Promises of the store, on a disk and in a bucket."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.errors import AccessError, InputError, StorageError
from pipeline.storage import Store
from tests.conftest import Bucket
from tests.storage.archives import let_the_disk_s_clock_move_on


def test_put_objects_can_be_read(store: Store) -> None:
    store.put("a/b.bin", b"first")
    store.put("a/b.bin", b"second")
    assert store.get("a/b.bin") == b"second"
    assert store.info("a/b.bin").size == 6


def test_nothing_exists_below_a_file(store: Store) -> None:
    store.put("a", b"a file")
    assert not store.exists("a/_table.json")


def test_names_are_sorted_and_never_stale(store: Store) -> None:
    assert store.names() == []
    store.put("x/2", b"")
    assert store.names("x/") == ["x/2"]
    Store(store.root).put("x/1", b"")
    Store(store.root).put("x-1", b"")
    assert store.names() == ["x-1", "x/1", "x/2"]
    assert store.names("x/1") == ["x/1"]
    Store(store.root).remove("x/2")
    assert store.names("x/") == ["x/1"]


def test_put_if_absent_keeps_the_first(store: Store) -> None:
    assert store.put_if_absent("t.json", b"first")
    assert not store.put_if_absent("t.json", b"second")
    assert store.get("t.json") == b"first"


def test_second_of_two_creators_gets_an_error(store: Store) -> None:
    store.put("t.json", b"first")
    with pytest.raises((OSError, StorageError)):
        store._create("t.json", b"second")
    assert store.get("t.json") == b"first"


def test_removing_twice_is_no_error(store: Store) -> None:
    store.put("a", b"1")
    store.remove("a")
    store.remove("a")
    assert not store.exists("a")


def test_missing_object_is_named_in_one_line(store: Store) -> None:
    with pytest.raises(StorageError, match=r"cannot read '.*/a table/nope': not found$"):
        store.get("nope")


def test_etag_changes_with_the_content(store: Store) -> None:
    store.put("a", b"1234")
    before = store.info("a")
    if not store.root.startswith("s3:"):
        let_the_disk_s_clock_move_on(Path(store.path("a")))
    store.put("a", b"4321")
    assert store.info("a").etag != before.etag
    assert store.info("a").size == before.size


def test_pickled_store_holds_only_its_root(store: Store) -> None:
    store.put("a", b"1")
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    assert pickle.loads(pickled).get("a") == b"1"


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b"])
def test_names_stay_inside_the_store(store: Store, name: str) -> None:
    with pytest.raises(StorageError, match="not a name inside"):
        store.put(name, b"")


def test_killed_put_leaves_nothing_visible(tmp_path: Path) -> None:
    """Kill the child process when the file is complete but not renamed yet."""
    program = f"""
        import os, signal
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        from pipeline.storage import Store
        Store({str(tmp_path)!r}).put("latents/s-00000.parquet", b"half" * 1000)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert run.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "latents").iterdir()]
    assert len(left) == 1
    assert list((tmp_path / "latents").glob("*.parquet")) == []
    store = Store(str(tmp_path))
    assert store.names() == []
    store.put("latents/s-00000.parquet", b"whole")
    assert store.get("latents/s-00000.parquet") == b"whole"


def test_failed_put_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        Store(str(tmp_path)).put("taken", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_wrong_credentials_are_reported_without_repeating_them(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-key")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-wrong-access-key")
    store = Store(s3.uri)
    # fsspec caches one client per process for equal arguments.
    store.fs.clear_instance_cache()
    try:
        with pytest.raises(AccessError) as caught:
            Store(s3.uri).put("a", b"1")
    finally:
        store.fs.clear_instance_cache()  # later tests must not get this client
    text = str(caught.value)
    assert "the access key is not known there (InvalidAccessKeyId)" in text
    assert "\n" not in text
    assert "a-wrong" not in text


def test_uri_with_credentials_is_refused_without_repeating() -> None:
    with pytest.raises(InputError, match="leave them out of the URI") as caught:
        Store("s3://user:hunter22@bucket/x")
    assert "hunter22" not in str(caught.value)


def test_unknown_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Protocol not known: gopher"):
        Store("gopher://host/x").names()


def test_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError) as caught:
        Store("gs://bucket/x").names()
    assert str(caught.value).endswith("pip install 'restyle-pipeline[gcp]'")
    assert "\n" not in str(caught.value)
