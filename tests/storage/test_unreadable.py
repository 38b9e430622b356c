"""Promises of files that cannot be read: one reject each, and the rest is read."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.errors import AccessError, StorageError
from pipeline.storage import ReadOptions, Sample, Store, list_shards, listing, read_samples
from pipeline.storage.readers import folder
from tests.conftest import Bucket
from tests.faults import actions
from tests.faults.proxy import FaultProxy, Rule, running_proxy
from tests.storage.archives import only_shard, write_files, write_tar
from tests.storage.s3_sessions import forget_s3_sessions

NOBODY = 65534


def rejects(folder: Path) -> dict[str, str]:
    """Return key and detail of each reject; check that other samples hold their own names."""
    details = {}
    for shard in list_shards(str(folder)):
        for sample in read_samples(shard):
            if sample.reject:
                assert sample.reject == "unreadable"
                details[sample.key] = sample.detail
            else:
                assert sample.content == sample.key.encode()
    return details


def test_dead_link_is_one_reject(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "3.jpg")
    (tmp_path / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "no-extension").symlink_to("nowhere")
    assert rejects(tmp_path) == {
        "2.jpg": f"cannot be read: a link to '{tmp_path}/gone.jpg', where nothing is",
        "no-extension": "cannot be read: a link to 'nowhere', where nothing is",
    }


def test_dead_link_of_a_sidecar_is_counted(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg")
    (tmp_path / "1.json").symlink_to("nowhere")
    (tmp_path / "noext").symlink_to("nowhere")
    shards = list_shards(str(tmp_path), options=ReadOptions(sniff=False))
    assert [shard.names for shard in shards] == [("1.jpg",)]
    assert shards.left_out == {".json": 1, "(no extension)": 1}


def test_repaired_link_changes_its_slice(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg")
    (tmp_path / "2.jpg").symlink_to(tmp_path / "far.png")
    before = only_shard(tmp_path)
    (tmp_path / "far.png").write_bytes(b"2.jpg")
    with pytest.raises(StorageError, match="changed while it was read"):
        list(read_samples(before))
    (after,) = (shard for shard in list_shards(str(tmp_path)) if shard.kind == "folder")
    assert after.etag != before.etag


def test_circular_links_are_one_reject_each(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg")
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert rejects(tmp_path) == dict.fromkeys(
        ("a.jpg", "b.jpg"), f"cannot be read: {os.strerror(errno.ELOOP).lower()}"
    )


def test_link_to_a_parent_is_counted(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    shards = list_shards(str(tmp_path))
    assert [shard.names for shard in shards] == [("a/1.jpg",)]
    assert shards.left_out == {"(folder loop)": 1}


def test_sockets_and_pipes_are_counted_not_opened(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        shards = list_shards(str(tmp_path))
        assert [shard.names for shard in shards] == [("1.jpg",)]
    assert shards.left_out == {"(special file)": 2}


@pytest.fixture
def too_deep(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with two images, and one too deep below it for any path."""
    write_files(tmp_path / "in", "1.jpg", "z.jpg")
    place = os.open(tmp_path / "in", os.O_RDONLY)
    step = "d" * 250
    opened = [place]
    for _ in range(20):
        os.mkdir(step, dir_fd=place)
        place = os.open(step, os.O_RDONLY, dir_fd=place)
        opened.append(place)
    os.close(os.open("deep.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    yield tmp_path / "in"
    os.unlink("deep.jpg", dir_fd=place)
    for above in reversed(opened[:-1]):
        os.rmdir(step, dir_fd=above)
    for descriptor in opened:
        os.close(descriptor)


def test_folder_too_deep_for_paths_is_one_reject(too_deep: Path) -> None:
    details = rejects(too_deep)
    (key,) = details
    assert key.startswith("d" * 200), "the start of a long path is kept"
    assert details[key] == f"cannot be read: {os.strerror(errno.ENAMETOOLONG).lower()}"


def test_folders_may_exceed_the_recursion_limit(tmp_path: Path) -> None:
    folder, steps = tmp_path, ["d"] * (sys.getrecursionlimit() + 100)
    for name in steps:
        folder = folder / name
        folder.mkdir()
    (folder / "1.jpg").write_bytes(b"1")
    try:
        assert only_shard(tmp_path).names == ("/".join([*steps, "1.jpg"]),)
    finally:  # pytest's own cleanup is recursive
        (folder / "1.jpg").unlink()
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent


def test_dead_link_of_a_shard_is_one_reject(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg")
    for name in ("a.tar", "a.parquet", "b.parquet", "c.zip"):
        (tmp_path / name).symlink_to("nowhere")
    (tmp_path / "d.tar").symlink_to("d.tar")
    nowhere = "cannot be read: a link to 'nowhere', where nothing is"
    assert rejects(tmp_path) == {
        **dict.fromkeys(("a.tar", "a.parquet", "b.parquet", "c.zip"), nowhere),
        "d.tar": f"cannot be read: {os.strerror(errno.ELOOP).lower()}",
    }
    assert len(only_shard(tmp_path).names) == 6


def test_dead_shard_link_stays_a_shard_without_sniffing(tmp_path: Path) -> None:
    """Existing tables made with `--no-sniff` keep their slices."""
    write_tar(tmp_path / "a.tar", [("0.jpg", b"1")])
    (tmp_path / "b.tar").symlink_to("nowhere")
    good, bad = list_shards(str(tmp_path), options=ReadOptions(sniff=False))
    assert [sample.key for sample in read_samples(good)] == ["0"]
    (reject,) = read_samples(bad)
    assert (reject.key, reject.reject) == ("b.tar", "unreadable")
    (tmp_path / "nowhere").write_bytes((tmp_path / "a.tar").read_bytes())
    with pytest.raises(StorageError, match="changed since it was listed"):
        list(read_samples(bad))


_READ_AS_NOBODY = """
import json, os, sys
from pipeline.storage import count_samples, list_shards, read_samples
os.setgroups([]); os.setgid(65534); os.setuid(65534)
shards = list(list_shards(sys.argv[1]))
counts = [count_samples(shard) for shard in shards]
assert counts == [len(list(read_samples(shard))) for shard in shards], counts
samples = [sample for shard in shards for sample in read_samples(shard)]
print(json.dumps([[sample.key, sample.reject, sample.detail] for sample in samples]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user id")
def test_files_without_permission_are_rejects(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", "1.jpg", "2.jpg", "3", "a/4.jpg", "b/5.jpg", "s.json")
    write_files(folder, "c.tar", "d.parquet", "e.zip", "f.tar.gz")
    (tmp_path / "far").mkdir()
    (folder / "link.jpg").symlink_to(tmp_path / "far" / "x.jpg")
    for name in ("2.jpg", "3", "a", "s.json", "c.tar", "d.parquet", "e.zip", "f.tar.gz"):
        (folder / name).chmod(0)
    (tmp_path / "far").chmod(0)
    for path in (folder, *folder.parents):
        if path != Path("/") and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o5)
    result = subprocess.run(
        [sys.executable, "-c", _READ_AS_NOBODY, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    denied = "cannot be read: permission denied"
    assert sorted(json.loads(result.stdout)) == [
        ["1.jpg", "", ""],
        ["2.jpg", "unreadable", denied],
        ["3", "unreadable", denied],
        ["a/", "unreadable", denied],
        ["b/5.jpg", "", ""],
        *([name, "unreadable", denied] for name in ("c.tar", "d.parquet", "e.zip", "f.tar.gz")),
        ["link.jpg", "unreadable", denied],
    ]


def test_changed_permissions_change_the_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions change neither size nor time."""
    write_files(tmp_path, "1.jpg")
    (tmp_path / "1.jpg").chmod(0o600)
    after = only_shard(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert only_shard(tmp_path).etag != after.etag


def test_unavailable_disk_fails_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO and ESTALE concern the whole mount and may pass, but rejects would stay."""
    write_files(tmp_path, "1.jpg", "2.jpg")
    shard = only_shard(tmp_path)

    def away(_: object, path: str) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(folder, "_read_whole", away)
    with pytest.raises(StorageError, match="Stale file handle"):
        list(read_samples(shard))


def test_deleted_file_fails_its_slice(tmp_path: Path) -> None:
    """A deleted file changes the input: the next run lists it without the file."""
    write_files(tmp_path, "1.jpg", "2.jpg")
    shard = only_shard(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(StorageError, match=r"2\.jpg': not found"):
        list(read_samples(shard))


@pytest.mark.parametrize("gone", ["a/1.jpg", "a"])
def test_file_deleted_while_listing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    write_files(tmp_path, "a/1.jpg", "b.jpg")
    state: Callable[..., tuple[int, str]] = listing.local_state

    def vanishing(path: str, *rest: object) -> tuple[int, str]:
        if path.endswith("a/1.jpg") or path.endswith("b.jpg"):
            for name in ("a/1.jpg", gone)[: 1 + (gone == "a")]:
                target = tmp_path / name
                if target.is_dir():
                    target.rmdir()
                elif target.exists():
                    target.unlink()
        if path.endswith("a/1.jpg"):
            raise FileNotFoundError(errno.ENOENT, "gone", path)
        return state(path, *rest)

    monkeypatch.setattr(listing, "local_state", vanishing)
    assert only_shard(tmp_path).names == ("b.jpg",)


def test_unreadable_file_of_a_list_is_a_reject(tmp_path: Path) -> None:
    write_files(tmp_path, "list.png")
    (tmp_path / "list.txt").write_text("list.png\nlink.jpg\n")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    samples: list[Sample] = list(read_samples(only_shard(tmp_path / "list.txt")))
    assert [(sample.key, sample.reject) for sample in samples] == [
        ("list.png", ""),
        ("link.jpg", "unreadable"),
    ]


@pytest.fixture
def denying(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Yield a proxy of the server, whose bucket holds `in/`, and `one/` with a single image."""
    for name in ("in/1.jpg", "in/2.jpg", "one/1.jpg"):
        Store(s3.uri).put(name, b"an image")
    archive = write_tar(tmp_path / "a.tar", [("0.jpg", b"0")])
    Store(s3.uri).put("in/a.tar", archive.read_bytes())
    address = urlsplit(s3.env["AWS_ENDPOINT_URL"])
    with running_proxy((str(address.hostname), int(address.port or 0))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget_s3_sessions()
        yield proxy
    forget_s3_sessions()


def denial(path: str) -> Rule:
    """Return a rule that answers 403 to each request for a path that matches `path`."""
    return Rule("GET", path, actions.error(403), times=1000)


def test_denied_object_is_one_reject(s3: Bucket, denying: FaultProxy) -> None:
    with denying.breaking(denial(r"in/2\.jpg")):
        *shards, folder = list_shards(f"{s3.uri}/in")
        assert [sample.content for sample in read_samples(shards[0])] == [b"0"]
        samples = list(read_samples(folder))
    assert [(sample.key, sample.reject, sample.detail) for sample in samples] == [
        ("1.jpg", "", ""),
        ("2.jpg", "unreadable", "cannot be read: access denied"),
    ]


def test_denied_folder_or_shard_fails(s3: Bucket, denying: FaultProxy) -> None:
    with denying.breaking(denial(r"\.(jpg|tar)")):
        for folder in ("in", "one"):
            for shard in list_shards(f"{s3.uri}/{folder}"):
                with pytest.raises(AccessError, match="access denied"):
                    list(read_samples(shard))
