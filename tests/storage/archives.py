"""Write and read small archives in tests."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Sample, Shard, list_shards, read_samples


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": partial(gzip.compress, compresslevel=1),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": partial(pa.compress, codec="zstd", asbytes=True),
}


def write_packed_tar(path: Path, members: Iterable[tuple[str, bytes]], packing: str) -> Path:
    """Write a tar packed by one of `PACKINGS`, under any name."""
    plain = write_tar(path, members).read_bytes()
    path.write_bytes(PACKINGS[packing](plain))
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_files(folder: Path, *names: str) -> Path:
    """Write files that hold their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def let_the_disk_s_clock_move_on(path: Path) -> None:
    """Wait until a file written beside `path` gets a later modification time.

    File times move in steps, of 10 ms on some kernels: a file rewritten within one step keeps its
    etag if it keeps its length.
    """
    probe = path.with_name(f".{path.name}.clock")
    while True:
        probe.write_bytes(b"")
        written = probe.stat().st_mtime_ns
        probe.unlink()
        if written > path.stat().st_mtime_ns:
            return
        time.sleep(0.001)


def only_shard(uri: Path | str) -> Shard:
    (shard,) = list_shards(str(uri))
    return shard


def samples_of(uri: Path | str) -> list[Sample]:
    return list(read_samples(only_shard(uri)))
