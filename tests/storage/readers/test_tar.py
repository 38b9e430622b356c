"""Promises of reading tar shards."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path
from random import Random

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage import read_samples
from pipeline.storage.readers import decompression, tar
from pipeline.storage.readers.archive_members import Member
from tests.storage.archives import (
    PACKINGS,
    only_shard,
    samples_of,
    write_packed_tar,
    write_tar,
)

KEYS = [f"{i:04d}" for i in range(5)]
MEMBERS = [(f"{i:04d}.jpg", bytes([i]) * 3000) for i in range(5)]


def keys(path: Path) -> list[str]:
    return [sample.key for sample in samples_of(path)]


def test_keys_are_member_paths_without_the_image_extension(tmp_path: Path) -> None:
    names = ["0007.jpg", "x/0007.jpg", "./y/0007.JPEG", "a.b.png"]
    path = write_tar(tmp_path / "s.tar", [(name, b"1") for name in names])
    assert keys(path) == ["0007", "x/0007", "y/0007", "a.b"]
    assert samples_of(path)[1].uri == f"{path}/x/0007.jpg"


def test_keys_never_collide_and_nothing_is_dropped(tmp_path: Path) -> None:
    names = ["0.jpg", "0.png", "0.jpg", "0.jpg", "0.jpg.webp", "0.jpg~2.gif"]
    path = write_tar(tmp_path / "s.tar", [(name, bytes([i])) for i, name in enumerate(names)])
    samples = [(sample.key, sample.content[0]) for sample in samples_of(path)]
    assert samples == [
        ("0", 0),
        ("0.png", 1),
        ("0.jpg", 2),
        ("0.jpg~2", 3),
        ("0.jpg.webp", 4),
        ("0.jpg~2.gif", 5),
    ]


def test_sidecars_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    names = ["0.jpg", "0.json", "0.txt", "0.cls", "0.npy", "._0.jpg", "__MACOSX/0.jpg", "0"]
    path = write_tar(tmp_path / "s.tar", [(name, b"1") for name in names])
    assert keys(path) == ["0"]


def test_undecodable_image_formats_are_samples(tmp_path: Path) -> None:
    names = ["0.heic", "1.avif", "2.jp2", "3.svg"]
    path = write_tar(tmp_path / "s.tar", [(name, b"1") for name in names])
    assert keys(path) == ["0", "1", "2", "3"]


def test_empty_member_is_a_sample(tmp_path: Path) -> None:
    (sample,) = samples_of(write_tar(tmp_path / "s.tar", [("0.jpg", b"")]))
    assert (sample.key, sample.content, sample.reject) == ("0", b"", "")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", ["s.tar", "S.TAR.GZ"])
def test_compression_is_recognised_by_first_bytes(tmp_path: Path, name: str, packing: str) -> None:
    assert keys(write_packed_tar(tmp_path / name, MEMBERS, packing)) == KEYS


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        *[("s.tar.gz", "gz"), ("s.tgz", "gz"), ("s.tar.bz2", "bz2"), ("s.tbz2", "bz2")],
        *[("s.tar.xz", "xz"), ("s.txz", "xz"), ("s.tar.zst", "zst"), ("S.TZST", "zst")],
    ],
)
def test_packed_tars_are_shards_by_name(tmp_path: Path, name: str, packing: str) -> None:
    write_packed_tar(tmp_path / name, MEMBERS, packing)
    assert keys(tmp_path) == KEYS


@pytest.mark.parametrize("packing", PACKINGS)
def test_concatenated_streams_are_read_as_one(tmp_path: Path, packing: str) -> None:
    """Parallel compressors write such files."""
    plain = write_tar(tmp_path / "s.tar", MEMBERS).read_bytes()
    pieces = [PACKINGS[packing](plain[i : i + 4000]) for i in range(0, len(plain), 4000)]
    (tmp_path / "s.tar").write_bytes(b"".join(pieces))
    assert keys(tmp_path / "s.tar") == KEYS


def test_skippable_frame_may_come_first(tmp_path: Path) -> None:
    path = write_packed_tar(tmp_path / "s.tar.zst", MEMBERS, "zst")
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + path.read_bytes())
    assert keys(path) == KEYS


def test_links_are_rejects(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0.jpg")
        member.type = tarfile.SYMTYPE
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    (sample,) = samples_of(path)
    assert (sample.content, sample.reject) == (b"", "unsupported_format")
    assert "/etc/passwd" in sample.detail


def test_paths_out_of_an_archive_write_nothing(tmp_path: Path) -> None:
    names = ["../../up.jpg", "/etc/abs.jpg"]
    path = write_tar(tmp_path / "in" / "s.tar", [(name, b"1") for name in names])
    assert keys(path) == ["../../up", "/etc/abs"]
    assert [item.name for item in tmp_path.rglob("*")] == ["in", "s.tar"]


def test_too_large_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.readers.archive_members.MAX_SAMPLE_BYTES", 1000)
    path = write_tar(tmp_path / "s.tar", [("0.jpg", b"1" * 1001), ("1.jpg", b"1" * 1000)])
    large, fits = samples_of(path)
    assert (large.key, large.content, large.reject) == ("0", b"", "too_large")
    assert (fits.key, len(fits.content), fits.reject) == ("1", 1000, "")


@pytest.mark.parametrize("cut", [100, 512, 2000, 3584, 3600, 4096, 10752])
def test_truncated_tar_fails_at_any_cut(tmp_path: Path, cut: int) -> None:
    """Byte 3584 lies between two members, where `tarfile` would silently stop."""
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"s\.tar' is damaged after \d samples"):
        samples_of(path)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("cut", [20, 60, -9, -4])
def test_truncated_packed_tar_fails(tmp_path: Path, cut: int, packing: str) -> None:
    path = write_packed_tar(tmp_path / "s.tar.gz", MEMBERS, packing)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"is damaged after \d samples"):
        samples_of(path)


@pytest.mark.parametrize("packing", PACKINGS)
def test_data_behind_packed_data_is_damage(tmp_path: Path, packing: str) -> None:
    path = write_packed_tar(tmp_path / "s.tar.gz", MEMBERS, packing)
    path.write_bytes(path.read_bytes() + b"something else behind it")
    with pytest.raises(StorageError, match="is damaged after 5 samples"):
        samples_of(path)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_flipped_bit_in_packed_data_fails(tmp_path: Path, packing: str) -> None:
    """Zstandard is not tested: Arrow writes it without the checksum that `zstd` adds."""
    noise = [("0.jpg", Random(0).randbytes(30_000))]
    content = bytearray(write_packed_tar(tmp_path / "s.tar.gz", noise, packing).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "s.tar.gz").write_bytes(content)
    with pytest.raises(StorageError, match="is damaged"):
        samples_of(tmp_path / "s.tar.gz")


@pytest.mark.parametrize("packing", PACKINGS)
def test_storage_error_is_not_reported_as_damage(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = only_shard(write_packed_tar(tmp_path / "s.tar.gz", MEMBERS, packing))

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    content = Path(shard.uri).read_bytes()
    monkeypatch.setattr(LocalFileSystem, "open", lambda *_, **__: Failing(content))
    with pytest.raises(StorageError, match=r"^cannot read '.*': .*Input/output error"):
        list(read_samples(shard))


def test_xz_with_excessive_memory_is_refused(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "s.tar", MEMBERS).read_bytes()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    (tmp_path / "s.tar.xz").write_bytes(lzma.compress(plain, filters=filters))
    with pytest.raises(StorageError, match=r"[Mm]emory usage limit"):
        samples_of(tmp_path / "s.tar.xz")


def test_damaged_header_fails_after_earlier_members(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[3584:3600] = b"\xff" * 16
    path.write_bytes(content)
    samples = read_samples(only_shard(path))
    assert next(samples).key == "0000"
    with pytest.raises(StorageError, match="damaged after 1 samples"):
        next(samples)


def test_second_archive_behind_the_first_is_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS[:1])
    content = io.BytesIO(path.read_bytes())
    path.write_bytes(content.getvalue() * 2)
    with pytest.raises(StorageError, match="data behind the end-of-archive mark"):
        samples_of(path)


def test_file_that_is_not_a_tar_fails(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(StorageError, match="damaged after 0 samples"):
        samples_of(tmp_path / "s.tar")


def test_deleted_shard_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    shard = only_shard(path)
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot read '.*s\.tar': not found"):
        list(read_samples(shard))


def records(text: bytes) -> tarfile.TarInfo:
    """Return a header that holds `text` as pax records."""
    member = tarfile.TarInfo("h")
    member.type, member.size = tarfile.XHDTYPE, len(text)
    return member


def test_invalid_pax_records_are_damage(tmp_path: Path) -> None:
    text = b"22 GNU.sparse.map=1,x\n"
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(records(text), io.BytesIO(text))
        archive.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(StorageError, match="is damaged after 0 samples"):
        samples_of(path)


def test_endless_chain_of_headers_is_damage(tmp_path: Path) -> None:
    text = b"11 path=ab\n"
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(3000):
            archive.addfile(records(text), io.BytesIO(text))
    with pytest.raises(StorageError, match="a header"):
        samples_of(path)


def test_member_larger_than_the_archive_is_damage(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.txt")
    member.size = 1 << 62
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"0" * 5000)
    with pytest.raises(StorageError, match="ends inside a member"):
        samples_of(tmp_path / "s.tar")


def test_header_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    text = b"\0" * (5 << 20)
    path = tmp_path / "s.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(records(text), io.BytesIO(text))
    with pytest.raises(StorageError, match="a header of over 1048576 bytes"):
        samples_of(path)


@pytest.mark.parametrize("packing", PACKINGS)
def test_decompression_bomb_is_refused(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "_BOMB_BYTES", 1 << 20)
    path = write_packed_tar(tmp_path / "s.tar.gz", [("0.txt", b"\0" * (8 << 20))], packing)
    with pytest.raises(StorageError, match="unpacks to over 200 times its size"):
        samples_of(path)


def test_members_already_read_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tarfile` would hold a gigabyte for a million members."""
    most = 0

    def counted(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
        nonlocal most
        most = max(most, len(archive.members))  # type: ignore[attr-defined]
        return member_of(archive, info)

    member_of = tar._member_of
    monkeypatch.setattr(tar, "_member_of", counted)
    assert keys(write_tar(tmp_path / "s.tar", MEMBERS)) == KEYS
    assert most == 1
