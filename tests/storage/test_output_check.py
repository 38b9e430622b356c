"""Promises of the check of an output before the work."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import (
    OutputKind,
    Store,
    check_output,
    check_outside,
    listing,
    output_check,
)
from pipeline.storage.output_check import check_beside
from tests.conftest import Bucket


def test_checking_a_writable_folder_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    check_output(str(tmp_path / "there"))
    check_output(f"file://{tmp_path}/not/yet")
    check_output("memory://somewhere")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    for output in ("a.tar", "a.tar/table"):
        with pytest.raises(ConfigError, match=r"cannot be a folder: '.*a\.tar' is a file"):
            check_output(str(tmp_path / output))


def test_output_that_cannot_be_created_is_refused() -> None:
    with pytest.raises(ConfigError, match="'/proc/x/y' cannot be written to: No such file"):
        check_output("/proc/x/y")
    with pytest.raises(ConfigError, match="the web is read-only"):
        check_output("https://localhost:1/table")


def test_disk_that_refuses_renames_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(output_check, "name_if_absent", refused)
    with pytest.raises(ConfigError, match="cannot be written to: Operation not permitted"):
        check_output(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_check.tempfile, "TemporaryDirectory", full)
    with pytest.raises(StorageError, match="No space left"):
        check_output(str(tmp_path))


def test_output_with_credentials_is_refused() -> None:
    with pytest.raises(InputError, match="carries credentials"):
        check_output("s3://key:secret@bucket/x")


def test_object_as_output_is_refused(s3: Bucket) -> None:
    check_output(f"{s3.uri}/table")
    Store(s3.uri).put("photos.tar", b"x")
    Store(s3.uri).put("table/_table.json", b"x")
    check_output(f"{s3.uri}/table")
    check_output(s3.uri)
    with pytest.raises(ConfigError, match="is an object"):
        check_output(f"{s3.uri}/photos.tar")


def test_output_inside_its_input_is_refused(
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


def test_output_beside_its_input_is_accepted(
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


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("{}/table/new/sheet.png", "lies inside the table"),
        ("{}/table", "lies inside the table"),
        ("{}/folder.png", "is a folder: name a file"),
        ("s3://sheet.png", "is a bucket: name a file in it"),
    ],
)
def test_impossible_output_files_are_refused(tmp_path: Path, output: str, problem: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises((ConfigError, InputError), match=problem):
        check_outside(f"{tmp_path}/table", output.format(tmp_path))
    check_outside(f"{tmp_path}/table", f"{tmp_path}/new/sheet.png")


KIND = OutputKind("a box", lambda store, _: store.exists("_box.json"))


def root_of(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an output on a disk or in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "out")
    bucket: Bucket = request.getfixturevalue("s3")
    return f"{bucket.uri}/out"


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(root_of(request, tmp_path))


def test_folder_of_other_files_is_refused(output: Store) -> None:
    for name in ("README.md", "photos/1.jpg", "photos/2.jpg", "x.csv", "y.csv"):
        output.put(name, b"mine")
    with pytest.raises(ConfigError) as refused:
        check_output(output.root, KIND)
    assert str(refused.value) == (
        f"the output '{output.root}' holds 'README.md', 'photos/', 'x.csv' and more, and is not "
        "a box: nothing is written among other files; choose a folder that is new or empty, or a "
        "box to continue"
    )
    assert len(output.names()) == 5


def test_output_of_the_right_kind_may_hold_extras(output: Store) -> None:
    check_output(output.root, KIND)
    output.put("notes.txt", b"mine")
    output.put("_box.json", b"{}")
    check_output(output.root, KIND)


def test_system_and_temporary_files_are_not_content(tmp_path: Path) -> None:
    names = (
        ".DS_Store",
        "lost+found/x",
        ".nfs0001",
        "._box.json.1-ab.tmp",
        ".write-test-x/complete",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    check_output(str(tmp_path), KIND)
    (tmp_path / ".env").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds '\.env', and is not a box"):
        check_output(str(tmp_path), KIND)


def test_folder_marker_in_a_bucket_is_not_content(s3: Bucket) -> None:
    store = Store(s3.uri)
    store.fs.call_s3("put_object", Bucket=s3.uri.removeprefix("s3://"), Key="out/", Body=b"")
    Store(f"{s3.uri}/output").put("beside", b"mine")
    check_output(f"{s3.uri}/out", KIND)


def test_output_check_costs_one_listing_request(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"{s3.uri}/out")
    for number in range(12):
        store.put(f"{number % 3}/{number}", b"mine")
    requests = []
    pages = listing.listing_pages

    def counted(fs: object, bucket: str, start: str, **more: str) -> Iterator[dict[str, Any]]:
        for page in pages(fs, bucket, start, **{**more, "MaxKeys": 2}):  # type: ignore[arg-type]
            requests.append(start)
            yield page

    monkeypatch.setattr(listing, "listing_pages", counted)
    monkeypatch.setattr(output_check, "_MAX_NAMES", 2)
    with pytest.raises(ConfigError, match=r"holds '0/', '1/', and is not a box"):
        check_output(store.root, KIND)
    assert requests == ["out/"]


def test_output_check_works_on_other_storages() -> None:
    Store("memory://box").put("a/b", b"mine")
    with pytest.raises(ConfigError, match="holds 'a/', and is not a box"):
        check_output("memory://box", KIND)
