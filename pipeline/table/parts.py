"""Part files: names, bytes, and the record of a part, which is read without its rows.

The bytes are a function of the rows, the key and the version of Arrow: no time, no host.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import TableError
from pipeline.metrics.registry import best_alone
from pipeline.storage import Store, one_line
from pipeline.table.stats import Counts, Stats

LATENTS = "latents"
REJECTS = "rejects"
_PART_NAME = re.compile(r"(?:latents|rejects)/(.+)-(\d{5,})\.parquet")
_PREFIX = "restyle."
COUNTS = ("samples", "faces", "rejects")
# 128 codes of 18 x 512 float16 are 2.3 MB: what reading one code costs, at little loss in footers.
_ROW_GROUP_ROWS = 128


@dataclass(frozen=True)
class PartKey:
    """Identity of a part; its fields are in the file metadata under `restyle.<name>`.

    A stored part is reused only if its whole key is the same. `part_size` belongs to it because it
    determines which samples are in which part.
    """

    schema_version: int
    fingerprint: str
    shard: str
    shard_etag: str
    part: int
    part_size: int

    @property
    def digest(self) -> str:
        """Hash of the whole key in 32 hex digits, the same in the part index of every version."""
        text = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return hashlib.sha256(f"Stamp({text})".encode()).hexdigest()[:32]

    def name(self, kind: str) -> str:
        """Return the name of the part's file; `kind` is `latents` or `rejects`."""
        return part_name(kind, self.shard, self.part)


# Metadata of both files of a part, in the order in which they are written.
_METADATA = (*(each.name for each in fields(PartKey)), *COUNTS, "metrics")


@dataclass(frozen=True)
class PartRecord:
    """Record of one part in the table; the fields are a row of the part index.

    Unknown fields are empty: `stamp` (the digest of a `PartKey`) and `figures` in a record from a
    manifest, the SHA-256 in one from a footer, the etags before the storage was asked for them.
    `figures` is JSON text, which only `stats` decodes: a restart reads many records and decodes
    none.
    """

    shard: str = ""
    part: int = 0
    stamp: str = ""
    samples: int = 0  # that came in
    faces: int = 0  # rows of latents
    rejects: int = 0  # rows of rejects
    latents_sha256: str = ""
    rejects_sha256: str = ""
    latents_etag: str = field(default="", compare=False)
    rejects_etag: str = field(default="", compare=False)
    figures: str = ""

    @property
    def counts(self) -> Counts:
        """Counts of the part, without rejects by reason, which `stats` has."""
        return Counts(parts=1, samples=self.samples, faces=self.faces, rejects=self.rejects)

    @property
    def stats(self) -> Stats:
        """Counts and metric sums of the part; `TableError` if `figures` is damaged."""
        return Stats.from_text(self.figures, self.counts)

    def has_counts_of(self, other: PartRecord) -> bool:
        """Return whether both hold as many samples, faces and rejects."""
        return self.counts == other.counts


def part_name(kind: str, shard_id: str, part: int) -> str:
    """Return the name of a part's file; `kind` is `latents` or `rejects`."""
    return f"{kind}/{shard_id}-{part:05d}.parquet"


def part_names(shard_id: str, part: int) -> tuple[str, str]:
    """Return the names of a part's latents and rejects."""
    return part_name(LATENTS, shard_id, part), part_name(REJECTS, shard_id, part)


def parse_part_name(name: str) -> tuple[str, int] | None:
    """Return the shard's id and the part's number; None if it is not the name of a part."""
    match = _PART_NAME.fullmatch(name)
    if not match or name != part_name(name.split("/", 1)[0], match[1], int(match[2])):
        return None
    return match[1], int(match[2])


def write_part(
    store: Store,
    key: PartKey,
    latents: pa.Table,
    rejects: pa.Table,
    *,
    samples: int,
    metrics: Mapping[str, str],
) -> PartRecord:
    """Write the two files of a part: rejects first, then latents, which commits the part.

    An existing file is never replaced, because a manifest may name it: a late writer, or a second
    run at the same time, would break that commit. An existing file of the same part, in the same
    state of the shard, is used as it is. Raises `TableError` for any other existing file, and if
    the rows do not account for all `samples`.
    """
    check_accounts(key.shard, key.part, latents, rejects, samples)
    counts = {"samples": samples, "faces": latents.num_rows, "rejects": rejects.num_rows}
    metadata = {**asdict(key), **counts, "metrics": dict(metrics)}
    latents_bytes, rejects_bytes, stats = encode_part(latents, rejects, metadata)
    # Stored rejects must be the same, or they contradict these latents. Stored latents may hold
    # other numbers for the same faces, as another kind of GPU computes them.
    stored = _put_once(store, key.name(REJECTS), rejects_bytes)
    if stored != rejects_bytes:
        raise _other_writer(store, key.name(REJECTS))
    stored = _put_once(store, key.name(LATENTS), latents_bytes)
    if stored != latents_bytes:
        stats = _stored_stats(store, key.name(LATENTS), stored, metadata)
    return PartRecord(
        shard=key.shard,
        part=key.part,
        stamp=key.digest,
        latents_sha256=hashlib.sha256(stored).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_bytes).hexdigest(),
        figures=stats.figures_text(),
        **counts,
    )


def check_accounts(
    shard_id: str, part: int, latents: pa.Table, rejects: pa.Table, samples: int
) -> None:
    """Raise `TableError` unless the rows of a part account for all its samples."""
    keys = set(latents["key"].to_pylist()) | set(rejects["key"].to_pylist())
    if len(keys) != samples:
        raise TableError(
            f"part {part} of shard '{shard_id}' has {samples} samples, but its rows account "
            f"for {len(keys)}"
        )


class EncodedPart(NamedTuple):
    """Bytes of the two files of a part, and what its rows add up to."""

    latents: bytes
    rejects: bytes
    stats: Stats


def encode_part(latents: pa.Table, rejects: pa.Table, metadata: Mapping[str, Any]) -> EncodedPart:
    """Encode the files of a part; `metadata` gets the numbers of rows and the sums.

    The bytes depend on the order of the metadata, which a file that is read does not keep.
    """
    stats = Stats.of(latents, rejects, best_alone(metadata.get("metrics", {})))
    counted = {**metadata, "faces": latents.num_rows, "rejects": rejects.num_rows}
    ordered = {name: counted[name] for name in _METADATA if name in counted}
    ordered |= {name: value for name, value in counted.items() if name != "figures"}
    return EncodedPart(
        _encode(latents, ordered | {"figures": stats.figures()}), _encode(rejects, ordered), stats
    )


def _put_once(store: Store, name: str, content: bytes) -> bytes:
    """Write `content` unless the object exists; return what is stored afterwards."""
    return content if store.put_if_absent(name, content) else store.get(name)


def _stored_stats(store: Store, name: str, content: bytes, metadata: Mapping[str, Any]) -> Stats:
    """Return the stats of a stored latents file; `TableError` if other metadata differs."""
    try:
        stored = _metadata_in(content, name)
        stats = stats_in(stored, name)
    except TableError as error:
        raise _other_writer(store, name) from error
    del stored["figures"]
    if stored != metadata:
        raise _other_writer(store, name)
    return stats


def _other_writer(store: Store, name: str) -> TableError:
    return TableError(
        f"'{store.uri(name)}' is there already, from another state of the input, another part size "
        "or an attempt with another result; when no other job writes to this table, run again"
    )


def read_part_record(store: Store, key: PartKey) -> PartRecord | None:
    """Read the record of a part from the footer of its latents and from its rejects.

    None if a file has another key, other counts or a damaged footer: then the part must be done
    again. Two runs with other part sizes can leave the latents of one beside the rejects of the
    other.
    """
    try:
        metadata = read_metadata(store, key.name(LATENTS))
        stats = stats_in(metadata, key.name(LATENTS))
        content = store.get(key.name(REJECTS))  # a few KB
        of_rejects = _metadata_in(content, key.name(REJECTS))
    except TableError:
        return None
    counts: dict[str, Any] = {name: metadata.get(name) for name in COUNTS}
    if not all(type(count) is int for count in counts.values()):
        return None
    expected = {**asdict(key), **counts}.items()
    if not (expected <= metadata.items() and expected <= of_rejects.items()):
        return None
    return PartRecord(
        shard=key.shard,
        part=key.part,
        stamp=key.digest,
        rejects_sha256=hashlib.sha256(content).hexdigest(),
        figures=stats.figures_text(),
        **counts,
    )


def read_metadata(store: Store, name: str) -> dict[str, Any]:
    """Return the `restyle.` entries of a file's metadata; `TableError` if it is damaged."""
    return decode_metadata(read_footer(store, name).metadata)


def read_footer(store: Store, name: str) -> pq.FileMetaData:
    """Read the footer of a Parquet file of the table: a few KB from its end.

    Raises `TableError` if it is damaged, and `StorageError` if it cannot be read.
    """
    with store.open(name) as file, damage_reported(store.uri(name)):
        return pq.read_metadata(file)


@contextmanager
def damage_reported(name: str) -> Iterator[None]:
    """Turn an error of Arrow about the bytes of the file `name` into a `TableError`.

    Arrow also raises built-in errors: for damaged pages and footers a plain `OSError` without a
    number, unlike the errors of a storage.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
            raise
        raise TableError(f"'{name}' is damaged: {one_line(error)}") from error


def decode_metadata(pairs: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the `restyle.` entries of a file's metadata; `TableError` if one is not JSON."""
    decoded = {}
    for name, value in (pairs or {}).items():
        if name.startswith(_PREFIX.encode()):
            try:
                decoded[name.decode().removeprefix(_PREFIX)] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise TableError(f"the metadata {name!r} of a part is not JSON") from error
    return decoded


def _metadata_in(content: bytes, name: str) -> dict[str, Any]:
    """Return what `read_metadata` does, of a file that was read already."""
    with damage_reported(name):
        return decode_metadata(pq.read_metadata(pa.BufferReader(content)).metadata)


def stats_in(metadata: Mapping[str, Any], name: str) -> Stats:
    """Return what the rows of the latents file `name` add up to; `TableError` if it is damaged."""
    try:
        return Stats.from_figures(metadata.get("figures"))
    except TypeError as error:
        raise TableError(f"'{name}': {error}") from error


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
