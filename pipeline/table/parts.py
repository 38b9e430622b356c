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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import TableError
from pipeline.storage import Store

LATENTS = "latents"
REJECTS = "rejects"
_PART_NAME = re.compile(r"(?:latents|rejects)/(.+)-(\d{5,})\.parquet")
_PREFIX = "restyle."
_COUNTS = ("samples", "faces", "rejects")
# 128 codes of 18 x 512 float16 are 2.3 MB: what reading one code costs, at little loss in footers.
_ROW_GROUP_ROWS = 128


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


@dataclass(frozen=True)
class PartSummary:
    """The counts of one part: samples that came in, rows of faces, rows of rejects.

    The SHA-256 of its two files is empty where the files were found and not written.
    """

    part: int
    samples: int
    faces: int
    rejects: int
    latents_sha256: str = ""
    rejects_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


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

    Raises `TableError` if the rows do not account for every one of the `samples`.
    """
    keys = set(latents["key"].to_pylist()) | set(rejects["key"].to_pylist())
    if len(keys) != samples:
        raise TableError(
            f"part {stamp.part} of shard '{stamp.shard}' took {samples} samples in and its rows "
            f"account for {len(keys)}"
        )
    summary = PartSummary(stamp.part, samples, latents.num_rows, rejects.num_rows)
    counts = {name: getattr(summary, name) for name in _COUNTS}
    metadata = {**asdict(stamp), **counts, "metrics": dict(metrics)}
    rejects_bytes = _encode(rejects, metadata)
    latents_bytes = _encode(latents, metadata)
    store.put(part_name(REJECTS, stamp.shard, stamp.part), rejects_bytes)
    store.put(part_name(LATENTS, stamp.shard, stamp.part), latents_bytes)
    return replace(
        summary,
        latents_sha256=hashlib.sha256(latents_bytes).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_bytes).hexdigest(),
    )


def read_summary(store: Store, stamp: Stamp) -> PartSummary | None:
    """The counts of a part that was written, from its footer.

    None if its stamp is another or its footer cannot be read: the part has to be done again.
    """
    try:
        metadata = read_metadata(store, part_name(LATENTS, stamp.shard, stamp.part))
    except TableError:
        return None
    if any(metadata.get(name) != value for name, value in asdict(stamp).items()):
        return None
    samples, faces, rejects = (int(metadata[name]) for name in _COUNTS)
    return PartSummary(stamp.part, samples, faces, rejects)


def read_metadata(store: Store, name: str) -> dict[str, Any]:
    """The `restyle.` entries of a file's metadata; `TableError` if it is no Parquet file."""
    return decode_metadata(read_footer(store, name).metadata)


def read_footer(store: Store, name: str) -> pq.FileMetaData:
    """The footer of a Parquet file of the table: a few KB from its end."""
    with store.open(name) as file:
        try:
            return pq.read_metadata(file)
        except pa.ArrowException as error:
            raise TableError(f"'{store.uri(name)}' is damaged: {error}") from error


def decode_metadata(pairs: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The `restyle.` entries among a file's key-value pairs, by name."""
    decoded = {}
    for name, value in (pairs or {}).items():
        if name.startswith(_PREFIX.encode()):
            decoded[name.decode().removeprefix(_PREFIX)] = json.loads(value)
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
