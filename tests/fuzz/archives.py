"""Shards as bad input: tar and zip archives, Parquet files, and JSON sidecars of images."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.images import RejectReason
from pipeline.storage import ReadOptions, Sample, count_samples, list_shards, read_samples
from tests.fuzz import words
from tests.fuzz.kind import BrokenPromiseError, Case, Kind, write_case
from tests.fuzz.mutate import mutated
from tests.storage.bombs import packed_page, sparse_tar

_SAMPLE_BYTES = 4 << 20  # instead of a gigabyte, so that a bomb is cheap
_ENDINGS = (b".jpg", b".png", b".webp", b".JPEG", b".tif", b".json", b".txt", b".cls", b"")
_TYPES = [b"0"] * 3 + [bytes([kind]) for kind in b"\x001234567SVxgLKDX"]


def read(case: Case, folder: Path, options: ReadOptions | None = None) -> list[Sample]:
    """Return all samples of the input in `folder`, checked, and compared with their count."""
    write_case(case, folder)
    small = [
        mock.patch(f"pipeline.storage.readers.{module}.MAX_SAMPLE_BYTES", _SAMPLE_BYTES)
        for module in ("archive_members", "parquet", "folder", "referenced_images")
    ]
    # Smaller than in production, because all samples are kept here.
    small.append(mock.patch("pipeline.storage.readers.zip._BOMB_BYTES", 4 * _SAMPLE_BYTES))
    all_samples: list[Sample] = []
    for patch in small:
        patch.start()
    try:
        for shard in list_shards(str(folder), options=options):
            counted = count_samples(shard, None, options)
            samples = list(read_samples(shard, None, options))
            check(samples)
            if shard.kind != "parquet" and counted != len(samples):
                raise BrokenPromiseError(f"{counted} samples counted and {len(samples)} read")
            all_samples += samples
    finally:
        mock.patch.stopall()
    return all_samples


def check(samples: list[Sample]) -> None:
    """Check what later stages assume: unique keys, valid text, and known reject reasons."""
    keys = [sample.key for sample in samples]
    if len(set(keys)) != len(keys) or not all(keys):
        raise BrokenPromiseError(f"keys are empty or not unique: {keys[:5]!r}")
    for sample in samples:
        for said in (sample.key, sample.uri, sample.detail):
            said.encode()
        if sample.reject:
            RejectReason(sample.reject)
        if sample.fields:
            json.loads(sample.fields)
        if not isinstance(sample.content, bytes):
            raise BrokenPromiseError(f"content of {type(sample.content).__name__}")


def _run(case: Case, folder: Path) -> str:
    """Read the case with options that depend only on its size, so that it is repeatable."""
    draw = Random(sum(map(len, case.values())))
    options = ReadOptions(
        image_field=draw.choice(("one", "one", "all", "png,jpg")),
        keep_columns=draw.choice(({}, {}, {"label": "int64", "txt": "string", "a.b": "string"})),
    )
    samples = read(case, folder, options)
    rejects = {sample.reject for sample in samples if sample.reject}
    return f"reject:{min(rejects)}" if rejects else "row"


# --- tar


def header(draw: Random, name: bytes, size: int, kind: bytes, link: bytes = b"") -> bytes:
    """Return a tar header with a valid checksum and arbitrary fields."""
    field = b"%011o\0" % (size & 0o77777777777)
    if size >= 1 << 33 or size < 0:
        field = b"\x80" + (size & ((1 << 88) - 1)).to_bytes(11, "big")
    magic = draw.choice((b"ustar\x0000", b"ustar  \0", b"\0" * 8))
    block = bytearray(512)
    block[:100] = name[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\00000000\00000000\0"
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic
    if draw.random() < 0.2:  # random bytes in later fields
        start = draw.choice((136, 265, 329, 345, 386, 482))
        block[start : start + 24] = draw.randbytes(24)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def _pax(draw: Random) -> bytes:
    """Return the records of a pax header, some with wrong lengths."""
    records = b""
    for _ in range(draw.randint(1, 4)):
        key = draw.choice(
            (
                *(b"path", b"size", b"linkpath", b"hdrcharset", b"mtime", b"GNU.sparse.major"),
                *(b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize"),
            )
        )
        value = draw.choice((words.path(draw), b"1", b"-1", b"99999999999", b"0,1,5,9", b"\xff"))
        record = b" %b=%b\n" % (key, value)
        length = len(record) + len(str(len(record) + 2))
        records += b"%d%b" % (length + draw.choice((0, 0, 0, 0, 1, -3, 10**6)), record)
    return records


def _member(draw: Random) -> bytes:
    name = words.path(draw).replace(b"\0", b"") + draw.choice(_ENDINGS)
    kind = draw.choice(_TYPES)
    content = draw.randbytes(draw.choice((0, 1, 300, 512, 2000)))
    size = len(content)
    if kind in b"xgX" and kind:
        content = _pax(draw)
        size = len(content)
    elif kind in b"LK" and kind:
        content = words.path(draw) * draw.choice((1, 30)) + b"\0"
        size = len(content)
    if draw.random() < 0.05:  # a size that differs from the content's
        size = draw.choice((0, -1, 2**31, 2**33, 2**63, 2**80, size + 512, size - 1))
    head = header(draw, name, size, kind, words.path(draw) if kind in b"12" else b"")
    if kind == b"S" and draw.random() < 0.8:  # GNU sparse map in the header
        block = bytearray(head)
        entries = (draw.choice((0, 512, 2**32, 8**11 - 1)) for _ in range(8))
        block[386:482] = b"".join(b"%011o " % entry for entry in entries)
        block[482] = draw.choice((0, 1))
        block[483:495] = b"%011o " % draw.choice((0, 5000, 2**22, 8**11 - 1))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        head = bytes(block)
    return head + _padded(content)


@functools.cache
def _small_bomb(make: Callable[..., Path], size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder, "shard"), size=size).read_bytes()


@functools.cache
def plain_tar(form: int) -> bytes:
    """Return a valid archive in one of three formats, with a long name and a sidecar."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name in ("0001.jpg", "0001.json", "n" * 90 + "/" + "n" * 90 + ".png", "ä.webp"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(b"7" * 700))
    return sink.getvalue()


def _chain(draw: Random) -> bytes:
    """Return up to thousands of headers that only announce the next header."""
    content = _padded(b"11 path=ab\n") if draw.random() < 0.5 else _padded(b"ab\0")
    kind = b"x" if content.startswith(b"11") else b"L"
    entry = header(draw, b"h", 11 if kind == b"x" else 3, kind) + content
    return entry * draw.choice((10, 3000)) + _member(draw)


def _zeros(draw: Random) -> bytes:
    """Return a tar of many megabytes of zeros: a member, a long name or a pax header."""
    size = draw.choice((1 << 20, 5 << 20, 100 << 20))
    kind = draw.choice((b"0", b"x", b"L", b"g", b"7"))
    name = draw.choice((b"0.jpg", b"0.txt"))
    return header(draw, name, size, kind) + b"\0" * size + plain_tar(tarfile.GNU_FORMAT)


def _make_tar(draw: Random) -> Case:
    way = draw.random()
    if way < 0.02:
        return {
            "shard.tar": _small_bomb(sparse_tar, draw.choice((1 << 20, 20 << 20, (8 << 30) - 1)))
        }
    if way < 0.35:
        form = draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        content = mutated(draw, plain_tar(form))
    elif way < 0.9:
        content = b"".join(_member(draw) for _ in range(draw.randint(1, 5)))
        content += b"\0" * draw.choice((0, 512, 1024, 1024, 10_240, 10_240))
        if draw.random() < 0.2:
            content = mutated(draw, content, most=2)
    elif way < 0.97:
        content = _chain(draw) + b"\0" * 1024
    else:
        return {"shard.tar.gz": gzip.compress(_zeros(draw), 1)}
    if draw.random() < 0.2:
        packed = gzip.compress(content, 1)
        return {"shard.tgz": mutated(draw, packed, most=2) if draw.random() < 0.5 else packed}
    return {"shard.tar": content}


_PACK: dict[str, Callable[[bytes], bytes]] = {
    "bz2": functools.partial(bz2.compress, compresslevel=1),
    "xz": functools.partial(lzma.compress, preset=0),
    "zst": functools.partial(pa.compress, codec="zstd", asbytes=True),
}


def _make_packed(draw: Random) -> Case:
    """Return a tar not packed by gzip, damaged before or after it was packed."""
    name, pack = draw.choice(tuple(_PACK.items()))
    content = plain_tar(draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    if draw.random() < 0.03:
        content = _zeros(draw)
    elif draw.random() < 0.3:
        content = mutated(draw, content)
    cut = draw.choice((0, 0, 700, len(content)))
    packed = b"".join(pack(piece) for piece in (content[:cut], content[cut:]) if piece)
    if draw.random() < 0.7:
        packed = mutated(draw, packed, most=3)
    return {f"shard.tar.{name}": packed}


# --- zip


@functools.cache
def plain_zip(form: int) -> bytes:
    """Return a valid archive like StyleGAN's `dataset.zip`, in one compression."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", form) as archive:
        for index in range(3):
            archive.writestr(f"00000/img{index:08d}.png", b"7" * 700)
        labels = [[f"00000/img{index:08d}.png", index] for index in range(3)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return sink.getvalue()


def _zip_entry(draw: Random) -> tuple[bytes, bytes]:
    """Return a local header with data, and a directory entry that may contradict it."""
    name = words.path(draw)[:60_000] + draw.choice(_ENDINGS)
    content = draw.randbytes(draw.choice((0, 1, 300, 5000)))
    method = draw.choice((0, 0, 8, 8, 8, 9, 12, 99, draw.randrange(1 << 16)))
    packed = zlib.compress(content, 1)[2:-4] if method == 8 else content
    flags = draw.choice((0, 0, 0, 1, 8, 0x800, draw.randrange(1 << 16)))
    numbers = [zlib.crc32(content), len(packed), len(content)]
    extra = draw.choice((b"", b"", draw.randbytes(9), struct.pack("<2H3Q", 1, 24, 5, 2**40, 2**63)))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, *numbers, len(name), 0)
    if draw.random() < 0.3:
        numbers[draw.randrange(3)] = draw.choice((0, 1, 2**31, 2**32 - 1, len(content) + 1))
    mode = draw.choice((0, 0, 0o100644, 0o120777, 0o040755)) << 16
    fields = [draw.choice((20, 0x314)), 20, flags, method, 0, 0, *numbers]
    lengths = [len(name), len(extra), 0, 0, 0, mode]
    entry = struct.pack("<4s6H3L5HL", b"PK\1\2", *fields, *lengths)
    return local + name + packed, entry + b"\0\0\0\0" + name + extra


def _drawn_zip(draw: Random) -> bytes:
    data, directory = b"", b""
    for _ in range(draw.choice((0, 1, 3, 8))):
        body, entry = _zip_entry(draw)
        head, rest = entry[:42], entry[46:]
        place = draw.choice((len(data), len(data), len(data), 0, 2**32 - 1, len(data) + 1))
        directory += head + struct.pack("<L", place) + rest
        data += body
    directory *= draw.choice((1, 1, 1, 2, 50))
    entries = draw.choice((directory.count(b"PK\1\2"), 0, 0xFFFF)) & 0xFFFF
    end = struct.pack(
        *("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(directory)),
        *(draw.choice((len(data), len(data), len(data), 0, 2**32 - 1)), 0),
    )
    return data + directory + end


def _zip_bomb(draw: Random) -> bytes:
    """Return entries that share the bytes of one and unpack to a thousand times their size."""
    size = draw.choice((3 << 20, 5 << 20, 100 << 20))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", b"\0" * size)
    content = sink.getvalue()
    start, stop = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    count = draw.choice((1, 30, 300))
    directory = content[start:stop] * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return content[:start] + directory + end


def _make_zip(draw: Random) -> Case:
    way = draw.random()
    if way < 0.02:
        content = _zip_bomb(draw)
    elif way < 0.5:
        form = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        content = mutated(draw, plain_zip(form), most=4)
    else:
        content = _drawn_zip(draw)
        if draw.random() < 0.2:
            content = mutated(draw, content, most=2)
    return {draw.choice(("dataset.zip", "images.ZIP")): content}


# --- Parquet

_HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGES: dict[str, tuple[pa.DataType, Any]] = {
    "binary": (pa.binary(), b"x" * 300),
    "large": (pa.large_binary(), b"x" * 300),
    "view": (pa.binary_view(), b"x" * 300),
    "fixed": (pa.binary(4), b"abcd"),
    "image": (_HF, {"bytes": b"x" * 300, "path": "a.jpg"}),
    "odd path": (
        pa.struct([("bytes", pa.binary()), ("path", pa.int64())]),
        {"bytes": b"x", "path": 1},
    ),
    "deep": (pa.struct([("bytes", _HF)]), {"bytes": {"bytes": b"x", "path": "p"}}),
    "list": (pa.list_(pa.binary()), [b"x"]),
    "map": (pa.map_(pa.string(), pa.binary()), [("a", b"x")]),
    "dictionary": (pa.dictionary(pa.int32(), pa.binary()), b"x" * 300),
    "images": (pa.list_(_HF), [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "../b"}]),
    "no bytes": (_HF, {"bytes": None, "path": "/etc/passwd"}),
    "text": (pa.string(), "x"),
    "number": (pa.float64(), 1.0),
    "nothing": (pa.null(), None),
}
_KEYS: tuple[tuple[pa.DataType, Any], ...] = (
    (pa.string(), "k"),
    (pa.string(), "../../\x1b\n" * 20),
    (pa.binary(), b"\xff\xfe"),
    (pa.int64(), 7),
    (pa.float64(), float("nan")),
    (pa.bool_(), True),
    (pa.timestamp("ns"), 1),
    (pa.date32(), 2**30),
    (pa.decimal128(38, 2), 1),
    (pa.list_(pa.string()), ["a", "b"]),
    (_HF, {"bytes": b"1", "path": "q"}),
    (pa.dictionary(pa.int8(), pa.string()), "k"),
    (pa.duration("ns"), 2**62),
)


def _parquet(draw: Random) -> bytes:
    rows = draw.choice((0, 1, 5, 40))
    columns: dict[str, pa.Array] = {}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind, value = draw.choice(tuple(_IMAGES.values()))
        name = draw.choice(("image", "bytes", "jpg", "mask", words.text(draw)))
        values = [value if draw.random() < 0.9 else None for _ in range(rows)]
        columns[name] = pa.array(values, kind)
    if draw.random() < 0.6:
        kind, value = draw.choice(_KEYS)
        name = draw.choice(("key", "__key__", "id", "path", "file_name", "label", "txt"))
        columns[name] = pa.array([value] * rows, kind)
    if draw.random() < 0.02:  # a schema that an error message should not list
        columns |= {f"{words.text(draw)}{i}": pa.array([1] * rows) for i in range(500)}
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        sink,
        compression=draw.choice(("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        use_dictionary=draw.random() < 0.5,
        data_page_version=draw.choice(("1.0", "2.0")),
        write_page_checksum=draw.random() < 0.3,
        row_group_size=draw.choice((3, 100)),
        store_schema=draw.random() < 0.7,
    )
    return sink.getvalue()


def _bomb(draw: Random) -> bytes:
    """Return rows that share one large value, in a file of some kilobytes."""
    value = b"\0" * draw.choice((1 << 20, 16 << 20))
    sink = io.BytesIO()
    kind = draw.choice((pa.binary(), pa.large_binary()))
    pq.write_table(
        pa.table({"image": pa.array([value] * draw.choice((1, 8)), kind)}),
        sink,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        use_dictionary=draw.random() < 0.7,
    )
    return sink.getvalue()


def _footer(draw: Random, content: bytes) -> bytes:
    """Damage only the footer, which holds the positions and sizes of everything."""
    (length,) = struct.unpack("<I", content[-8:-4])
    start = max(0, len(content) - 8 - length)
    footer = mutated(draw, content[start:-8], most=3)
    return content[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _make_parquet(draw: Random) -> Case:
    if draw.random() < 0.01:
        return {"shard.parquet": _bomb(draw)}
    if draw.random() < 0.01:
        return {"shard.parquet": _small_bomb(packed_page, 300 << 20)}
    content = _parquet(draw)
    way = draw.random()
    if way < 0.35:
        content = _footer(draw, content)
    elif way < 0.75:
        content = mutated(draw, content, most=4)
    return {"shard.parquet": content}


# --- JSON sidecars

_SIDE = (".json", ".txt", ".cls", ".JSON", ".jpg.json")


def json_text(draw: Random, depth: int = 0) -> Any:
    """Return an arbitrary JSON value."""
    way = draw.randrange(9 if depth < 4 else 6)
    if way < 6:
        numbers = (0, -1, 2**63, 10**400, 1e308, float("nan"), float("-inf"), 0.1)
        return draw.choice((None, True, words.text(draw), "", *numbers))
    if way == 6:
        return [json_text(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {words.text(draw): json_text(draw, depth + 1) for _ in range(draw.randrange(4))}


def _make_sidecar(draw: Random) -> Case:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for index in range(draw.randint(1, 4)):
            sidecar = json.dumps(json_text(draw)).encode()
            if draw.random() < 0.3:
                sidecar = mutated(draw, sidecar)
            if draw.random() < 0.05:
                sidecar = b"[" * 100_000
            files = [
                (f"{index:04d}.jpg", b"%d" % index),
                (f"{index:04d}{draw.choice(_SIDE)}", sidecar),
            ]
            draw.shuffle(files)
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return {"shard.tar": sink.getvalue()}


def _run_sidecar(case: Case, folder: Path) -> str:
    samples = sorted(read(case, folder), key=lambda sample: sample.key)
    if [sample.content for sample in samples] != [b"%d" % i for i in range(len(samples))]:
        raise BrokenPromiseError("a sidecar changed an image")
    return "row"


KINDS = [
    Kind("tar", _make_tar, _run, share=20, memory_mib=64),
    Kind("packed", _make_packed, _run, share=10, memory_mib=64),
    Kind("zip", _make_zip, _run, share=20, memory_mib=64),
    Kind("parquet", _make_parquet, _run, share=20, memory_mib=256),
    Kind("sidecar", _make_sidecar, _run_sidecar, share=5, memory_mib=64),
]
