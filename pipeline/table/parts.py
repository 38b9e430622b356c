"""Part files: names, bytes, and what is known of a part without reading its rows.

The bytes are a function of the rows, the stamp and the version of Arrow: no time, no host.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import TableError
from pipeline.storage import Shard, Store, one_line
from pipeline.table.figures import Figures

LATENTS = "latents"
REJECTS = "rejects"
_PART_NAME = re.compile(r"(?:latents|rejects)/(.+)-(\d{5,})\.parquet")
_PREFIX = "restyle."
COUNTS = ("samples", "faces", "rejects")
# 128 codes of 18 x 512 float16 are 2.3 MB: what reading one code costs, at little loss in footers.
_ROW_GROUP_ROWS = 128
# What is read of a file for its footer, as Arrow does it; a longer one takes a second read.
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Stamp:
    """What a part was made from; it stands in the file metadata under `restyle.<name>`.

    A part is used again only if the whole stamp is the same. `part_size` is in it because it fixes
    which samples are in which part.
    """

    schema_version: int
    fingerprint: str
    shard: str
    shard_etag: str
    part: int
    part_size: int

    @property
    def digest(self) -> str:
        """The whole stamp in 32 hex digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Stamps:
    """The stamps of the parts that a run with certain settings writes."""

    schema_version: int
    fingerprint: str
    part_size: int

    def of(self, shard: Shard, part: int) -> Stamp:
        """The stamp of part number `part` of the shard as it stands in the input."""
        return Stamp(
            schema_version=self.schema_version,
            fingerprint=self.fingerprint,
            shard=shard.shard_id,
            shard_etag=shard.etag,
            part=part,
            part_size=self.part_size,
        )


@dataclass(frozen=True)
class PartSummary:
    """The counts of one part: samples that came in, rows of faces, rows of rejects.

    The SHA-256 of its two files is empty where they were found, and their footers read. `figures`
    are a line of `Figures.to_text`, empty in a manifest, which has them for all parts together.
    """

    part: int
    samples: int
    faces: int
    rejects: int
    latents_sha256: str = ""
    rejects_sha256: str = ""
    figures: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def counts_of(summary: PartSummary) -> tuple[int, ...]:
    """Samples, faces and rejects."""
    return tuple(getattr(summary, name) for name in COUNTS)


def part_name(kind: str, shard_id: str, part: int) -> str:
    """The name of a part's file; `kind` is `latents` or `rejects`."""
    return f"{kind}/{shard_id}-{part:05d}.parquet"


def parse_part_name(name: str) -> tuple[str, int] | None:
    """The shard's id and the part's number; None for a name that no part has."""
    match = _PART_NAME.fullmatch(name)
    if not match or name != part_name(name.split("/", 1)[0], match[1], int(match[2])):
        return None
    return match[1], int(match[2])


def write_part(
    store: Store,
    stamp: Stamp,
    latents: pa.Table,
    rejects: pa.Table,
    *,
    samples: int,
    metrics: Mapping[str, str],
) -> PartSummary:
    """Put the two files of a part: rejects first, then latents, which is the part's commit.

    A file that is there is never written over: a writer that was late, or a second run beside this
    one, would break the commit that names the file. It is taken as it is if it is the same part of
    the same state of the shard. Raises `TableError` if it is not, and if the rows do not account
    for every one of the `samples`.
    """
    keys = set(latents["key"].to_pylist()) | set(rejects["key"].to_pylist())
    if len(keys) != samples:
        raise TableError(
            f"part {stamp.part} of shard '{stamp.shard}' took {samples} samples in and its rows "
            f"account for {len(keys)}"
        )
    summary = PartSummary(stamp.part, samples, latents.num_rows, rejects.num_rows)
    figures = Figures.of(latents, rejects)
    counts = {name: getattr(summary, name) for name in COUNTS}
    metadata = {**asdict(stamp), **counts, "metrics": dict(metrics)}
    rejects_bytes = _encode(rejects, metadata)
    latents_bytes = _encode(latents, metadata | {"figures": asdict(figures)})
    rejects_name = part_name(REJECTS, stamp.shard, stamp.part)
    latents_name = part_name(LATENTS, stamp.shard, stamp.part)
    # Other rejects would not go with these latents; other numbers of the same faces do, and another
    # kind of GPU gives them.
    found = _put_once(store, rejects_name, rejects_bytes)
    if found != rejects_bytes:
        raise _other_writer(store, rejects_name)
    found = _put_once(store, latents_name, latents_bytes)
    if found != latents_bytes:
        figures = _figures_beside(store, latents_name, found, metadata)
    return replace(
        summary,
        latents_sha256=hashlib.sha256(found).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_bytes).hexdigest(),
        figures=figures.to_text(),
    )


def _put_once(store: Store, name: str, content: bytes) -> bytes:
    """What stands under `name` in the end: `content`, unless something stood there before."""
    return content if store.put_if_absent(name, content) else store.get(name)


def _figures_beside(
    store: Store, name: str, content: bytes, metadata: Mapping[str, Any]
) -> Figures:
    """The figures of a file of latents; `TableError` unless the rest of its metadata is this."""
    try:
        found = decode_metadata(pq.read_metadata(pa.BufferReader(content)).metadata)
        figures = Figures.from_dict(found.pop("figures", None))
    except (pa.ArrowException, TableError, TypeError, UnicodeDecodeError) as error:
        raise _other_writer(store, name) from error
    if found != metadata:
        raise _other_writer(store, name)
    return figures


def _other_writer(store: Store, name: str) -> TableError:
    return TableError(
        f"'{store.uri(name)}' is there already, from another state of the input, another part size "
        "or an attempt that ended otherwise; when no other job writes to this table, run again"
    )


def read_summary(store: Store, stamp: Stamp) -> PartSummary | None:
    """The counts and figures of a part that was written, from its footer.

    None if its stamp is another or its footer cannot be read: the part has to be done again.
    """
    try:
        metadata = read_metadata(store, part_name(LATENTS, stamp.shard, stamp.part))
        figures = Figures.from_dict(metadata.get("figures"))
    except (TableError, TypeError):
        return None
    if any(metadata.get(name) != value for name, value in asdict(stamp).items()):
        return None
    counts: list[Any] = [metadata.get(name) for name in COUNTS]
    if not all(type(count) is int for count in counts):
        return None
    return replace(PartSummary(stamp.part, *counts), figures=figures.to_text())


def read_metadata(store: Store, name: str) -> dict[str, Any]:
    """The `restyle.` entries of a file's metadata; `TableError` if it is no Parquet file."""
    return decode_metadata(read_footer(store, name).metadata)


def read_footer(store: Store, name: str) -> pq.FileMetaData:
    """The footer of a Parquet file of the table: a few KB from its end.

    Raises `TableError` if it is damaged, and `StorageError` if it cannot be read.
    """
    with store.open(name) as file:
        tail = _tail(file)
    try:
        # Of the bytes, not of the file: Arrow raises OSError for a damaged footer as well, which is
        # not to be taken for a storage that fails.
        return pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"'{store.uri(name)}' is damaged: {one_line(error)}") from error


def _tail(file: BinaryIO) -> bytes:
    """The end of a Parquet file, its footer in it if it has one."""
    size = file.seek(0, io.SEEK_END)
    length = min(size, _TAIL_BYTES)
    file.seek(size - length)
    tail = file.read(length)
    # The last eight bytes: how long the footer is, and a magic number.
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if length < footer <= size and tail.endswith(b"PAR1"):
        file.seek(size - footer)
        tail = file.read(footer)
    return tail


def decode_metadata(pairs: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The `restyle.` entries among a file's key-value pairs; `TableError` if one is no JSON."""
    decoded = {}
    for name, value in (pairs or {}).items():
        if name.startswith(_PREFIX.encode()):
            try:
                decoded[name.decode().removeprefix(_PREFIX)] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise TableError(f"the metadata {name!r} of a part is no JSON") from error
    return decoded


def _encode(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    pairs = {_PREFIX + name: json.dumps(value, sort_keys=True) for name, value in metadata.items()}
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    table = table.replace_schema_metadata(pairs)
    sink = io.BytesIO()
    options = {"compression": "zstd", "compression_level": 3, "use_dictionary": strings}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        # Hugging Face datasets fails on a row group of no rows, and reads a file of no row groups.
        if table.num_rows:
            writer.write_table(table.combine_chunks(), row_group_size=_ROW_GROUP_ROWS)
    return sink.getvalue()
