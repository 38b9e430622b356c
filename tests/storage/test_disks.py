"""Promises of exclusive writes on disks with and without hard links."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Store, check_output, store


@pytest.fixture(params=["links", "renames", "neither"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on a file system with hard links, with an exclusive rename, or neither."""
    if request.param != "links":
        monkeypatch.setattr(os, "link", fails(errno.EPERM))
    if request.param == "neither":
        monkeypatch.setattr(store, "_rename_exclusively", lambda *_: False)
    return tmp_path


def fails(number: int) -> object:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_first_file_of_a_name_is_kept(disk: Path) -> None:
    store = Store(str(disk))
    assert store.put_if_absent("latents/a.parquet", b"first")
    assert not store.put_if_absent("latents/a.parquet", b"second")
    with pytest.raises(FileExistsError):  # as if another writer came between check and write
        store._create("latents/a.parquet", b"second")
    assert store.get("latents/a.parquet") == b"first"
    assert files(disk) == ["latents/a.parquet"]


def test_output_check_leaves_nothing_on_any_disk(disk: Path) -> None:
    check_output(str(disk / "table"))
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_one_of_many_writers_wins_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", fails(number))
    store = Store(str(tmp_path))
    start = threading.Barrier(8)
    won: list[int] = []

    def write(writer: int) -> None:
        for name in "abcdefgh":
            start.wait()
            if store.put_if_absent(name, str(writer).encode()):
                won.append(writer)
                assert store.get(name) == str(writer).encode()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert sorted(int(store.get(name)) for name in "abcdefgh") == sorted(won)


def test_full_disk_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fails(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        Store(str(tmp_path)).put_if_absent("a", b"1")
    assert files(tmp_path) == []


def test_denied_disk_is_not_blamed_on_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StorageError, match=r"cannot write '.*/a': access denied$"):
        Store(str(tmp_path)).put("a", b"1")
