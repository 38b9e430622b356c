"""Promises of the look at an output before the work."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import Store, check_beside, check_output, outputs
from tests.conftest import Bucket


def test_a_folder_that_can_be_written_to_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    check_output(str(tmp_path / "there"))
    check_output(f"file://{tmp_path}/not/yet")
    check_output("memory://somewhere")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    for output in ("a.tar", "a.tar/table"):
        with pytest.raises(ConfigError, match=r"cannot be a folder: '.*a\.tar' is a file"):
            check_output(str(tmp_path / output))


def test_what_cannot_be_created_is_refused() -> None:
    with pytest.raises(ConfigError, match="'/proc/x/y' cannot be written to: No such file"):
        check_output("/proc/x/y")
    with pytest.raises(ConfigError, match="the web is only read"):
        check_output("https://localhost:1/table")


def test_a_disk_on_which_no_file_gets_its_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(outputs, "name_if_absent", refused)
    with pytest.raises(ConfigError, match="cannot be written to: Operation not permitted"):
        check_output(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.tempfile, "TemporaryDirectory", full)
    with pytest.raises(StorageError, match="No space left"):
        check_output(str(tmp_path))


def test_credentials_are_refused_here_too() -> None:
    with pytest.raises(InputError, match="carries credentials"):
        check_output("s3://key:secret@bucket/x")


def test_an_object_of_a_bucket_is_no_folder(s3: Bucket) -> None:
    check_output(f"{s3.uri}/table")
    Store(s3.uri).put("photos.tar", b"x")
    Store(s3.uri).put("table/_table.json", b"x")
    check_output(f"{s3.uri}/table")
    check_output(s3.uri)
    with pytest.raises(ConfigError, match="is an object"):
        check_output(f"{s3.uri}/photos.tar")


def test_an_output_inside_its_input_is_refused_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "photos" / "away").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path / "photos")
    for source, output in [
        (".", "out"),
        ("../photos", "out"),
        ("x/../../photos", "x/out"),
        ("../link", "out"),
        ("../photos", "../link/out"),
        (".", "away/out"),  # links to folders are followed
        ("../link", "away"),
        ("../far", "away/out"),
        ("/", "out"),
        ("s3://bucket/in", "s3://bucket/in/out"),
    ]:
        with pytest.raises(InputError, match="lies inside the input"):
            check_beside(source, output)


def test_an_output_beside_its_input_is_accepted_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    for source, output in [
        (".", "../latents"),
        ("../photos", "../photos-latents"),
        ("../photos/a.tar", "latents"),
        ("s3://bucket/in", "s3://bucket/in-out"),
        ("s3://bucket/in", "in/out"),
        (".", "s3://bucket/out"),
    ]:
        check_beside(source, output)
