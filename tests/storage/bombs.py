"""Write shards of a few kilobytes that claim gigabytes."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def packed_page(path: Path, compression: str = "brotli", size: int = 300 << 20) -> Path:
    """Write a Parquet file with one image of zeros, whose page packs by a factor of 100,000."""
    table = pa.table({"image": pa.array([bytes(size)], pa.binary())})
    pq.write_table(table, path, compression=compression, use_dictionary=False)
    return path


def long_list(path: Path, values: int = 50_000_000) -> Path:
    """Write a Parquet file whose only row is a list of `values` nulls."""
    nulls = pa.array([None], pa.binary()).take(pa.array([0] * values, pa.int8()))
    lists = pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), nulls)
    pq.write_table(pa.table({"image": lists}), path, compression="zstd", data_page_size=1 << 30)
    return path


def sparse_tar(path: Path, size: int = 1 << 30, form: str = "gnu") -> Path:
    """Write a tar whose second of three images is a hole of `size` bytes except for the last."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(*_member("a.jpg", b"before"))
        if form == "pax":
            info, content = _member("b.jpg", b"x")
            info.pax_headers = {
                "GNU.sparse.size": str(size),
                "GNU.sparse.numblocks": "1",
                "GNU.sparse.map": f"{size - 1},1",
            }
            archive.addfile(info, content)
        else:
            archive.fileobj.write(_gnu_header(size) + b"x" + bytes(511))  # type: ignore[union-attr]
        archive.addfile(*_member("c.jpg", b"behind"))
    path.write_bytes(sink.getvalue())
    return path


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, io.BytesIO(content)


def _gnu_header(size: int) -> bytes:
    info = tarfile.TarInfo("b.jpg")
    info.size, info.type = 1, tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[386:410] = b"%011o\0%011o\0" % (size - 1, 1)
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = struct.pack("8s", b"%06o\0 " % sum(block))
    return bytes(block)
