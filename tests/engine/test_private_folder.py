"""Check the private folder of a run: mode, path length, removal."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.engine.private_folder import (
    is_private,
    make_private_folder,
    remove_private_folder,
)

HOLD = """
import sys
from pipeline.engine.private_folder import make_private_folder
print(make_private_folder(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a short temp directory for the test and its processes."""
    folder = tempfile.mkdtemp(prefix="t", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    return Path(folder)


def left_by_a_killed_driver() -> Path:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        folder = Path(driver.stdout.readline().strip())
        driver.kill()
    assert folder.is_dir()
    return folder


def test_only_its_user_enters_the_folder(temp: Path) -> None:
    os.umask(before := os.umask(0))
    folder = make_private_folder()
    try:
        assert folder.parent == temp
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert before is not None
    finally:
        remove_private_folder(folder)
    assert list(temp.iterdir()) == []


def test_concurrent_runs_have_separate_folders(temp: Path) -> None:
    first, second = make_private_folder(), make_private_folder()
    assert first != second
    assert {first, second} == set(temp.iterdir())
    remove_private_folder(first)
    assert list(temp.iterdir()) == [second]
    remove_private_folder(second)


def test_a_killed_drivers_folder_is_removed_later(temp: Path) -> None:
    left = left_by_a_killed_driver()
    folder = make_private_folder()
    assert not left.exists()
    assert list(temp.iterdir()) == [folder]
    remove_private_folder(folder)


def test_what_others_put_there_is_left_alone(temp: Path) -> None:
    kept = temp / "kept"
    kept.mkdir()
    (kept / "lock").touch()
    (temp / "restyle-linkedto").symlink_to(kept)
    (temp / "restyle-openopen").mkdir(mode=0o777)
    (temp / "restyle-openopen").chmod(0o777)
    (temp / "restyle-openopen" / "lock").touch()
    remove_private_folder(make_private_folder())
    assert len(list(temp.iterdir())) == 3
    assert (kept / "lock").exists()
    assert not is_private(temp / "restyle-linkedto")
    assert not is_private(temp / "restyle-openopen")


def test_a_long_temp_directory_leaves_room_for_sockets(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temp / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = make_private_folder()
    try:
        session = "session_2026-11-28_16-10-35_516522_1234567"
        assert len(str(folder / "r" / session / "sockets" / "plasma_store.1")) <= 107
    finally:
        remove_private_folder(folder)
