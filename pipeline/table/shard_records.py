"""Record of a committed shard: its manifest `_shards/<shard-id>.json` and its index row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import TableError
from pipeline.storage import LeftOut, Shard, Store
from pipeline.table.parts import PartKey, PartRecord
from pipeline.table.schema import SCHEMA_VERSION
from pipeline.table.spec import check_types, read_json, to_json
from pipeline.table.stats import Counts, Stats

_FOLDER = "_shards"
_MANIFEST_FIELDS = (
    *("shard", "uri", "kind", "etag", "size", "fingerprint", "part_size"),
    *("samples", "faces", "rejects", "schema_version"),
)
_PART_FIELDS = ("part", "samples", "faces", "rejects", "latents_sha256", "rejects_sha256")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A committed shard: its source, counts and parts.

    The first eleven fields are a row of the table's index; a record that was read from the index
    has only these. `figures` and `left_out` (files that the shard's reader passed over) are JSON
    texts, which only `stats` decodes: a restart may read a million rows and decodes none.
    """

    shard: str
    uri: str
    etag: str
    size: int
    samples: int
    faces: int
    rejects: int
    n_parts: int
    figures: str
    manifest_etag: str = ""
    left_out: str = ""
    kind: str = ""
    fingerprint: str = ""
    part_size: int = 0
    parts: tuple[PartRecord, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(
        cls,
        shard: Shard,
        parts: Sequence[PartRecord],
        fingerprint: str,
        part_size: int,
        left_out: Mapping[str, int] | None = None,
    ) -> ShardRecord:
        """Add up all parts of `shard`; `TableError` if a part is missing."""
        parts = sorted(parts, key=lambda part: part.part)
        numbers = [part.part for part in parts]
        if numbers != list(range(len(parts))):
            raise TableError(
                f"shard '{shard.shard_id}' cannot be committed with parts {numbers}: they must be "
                "0, 1, 2, ... without a gap"
            )
        total = sum((part.stats for part in parts), Stats())
        return cls(
            shard=shard.shard_id,
            uri=shard.source,
            etag=shard.etag,
            size=shard.size,
            samples=total.counts.samples,
            faces=total.counts.faces,
            rejects=total.counts.rejects,
            n_parts=len(parts),
            figures=total.figures_text(),
            left_out=LeftOut(left_out or {}).to_text(),
            kind=shard.kind,
            fingerprint=fingerprint,
            part_size=part_size,
            parts=tuple(PartRecord(**_part_to_dict(part)) for part in parts),
        )

    @property
    def counts(self) -> Counts:
        """Counts of the shard, without rejects by reason; `TableError` if its row is damaged."""
        try:
            left_out = LeftOut.from_text(self.left_out)
        except (TypeError, ValueError) as error:
            raise TableError(f"the table's index is damaged: {error}") from error
        return Counts(
            shards=1,
            empty_shards=int(not self.samples),
            parts=self.n_parts,
            samples=self.samples,
            faces=self.faces,
            rejects=self.rejects,
            bytes=self.size,
            left_out=left_out,
        )

    @property
    def stats(self) -> Stats:
        """Counts and metric sums of the shard; `TableError` if the texts are damaged."""
        return Stats.from_text(self.figures, self.counts)

    def part_key(self, part: int) -> PartKey:
        """Return the key of part number `part`."""
        return PartKey(
            schema_version=self.schema_version,
            fingerprint=self.fingerprint,
            shard=self.shard,
            shard_etag=self.etag,
            part=part,
            part_size=self.part_size,
        )

    def to_row(self) -> dict[str, Any]:
        """Return the shard's row of the index."""
        row = {name: getattr(self, name) for name in _ROW_FIELDS}
        return {("parts" if name == "n_parts" else name): value for name, value in row.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the document of the manifest."""
        *names, last = _MANIFEST_FIELDS
        left_out = LeftOut.from_text(self.left_out)
        return {
            **{name: getattr(self, name) for name in names},
            "parts": [_part_to_dict(part) for part in self.parts],
            "figures": Stats.from_text(self.figures).figures(),
            last: getattr(self, last),
            **({"left_out": left_out} if left_out else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ShardRecord:
        """Read the document of a manifest; `KeyError` or `TypeError` if it is not one."""
        values = dict(document)
        parts = tuple(_part_from_dict(part) for part in values.pop("parts"))
        stats = Stats.from_figures(values.pop("figures"))
        left_out = LeftOut.from_dict(values.pop("left_out", {}))
        values = {"schema_version": SCHEMA_VERSION} | values
        if values.keys() != set(_MANIFEST_FIELDS):
            raise TypeError(f"its fields are {sorted(values)}")
        record = cls(
            **values,
            n_parts=len(parts),
            parts=parts,
            figures=stats.figures_text(),
            left_out=left_out.to_text(),
        )
        check_types(record)
        return record

    def write(self, store: Store, *, replace: bool = False) -> bool:
        """Write the manifest, which commits the shard; return whether it is now the stored one.

        An existing manifest is replaced only with `replace`.
        """
        name, content = manifest_name(self.shard), to_json(self.to_dict())
        if replace:
            store.put(name, content)
        return replace or store.put_if_absent(name, content) or store.get(name) == content


_ROW_FIELDS = tuple(field.name for field in fields(ShardRecord))[:11]


def manifest_name(shard_id: str) -> str:
    """Return the name of a shard's manifest."""
    return f"{_FOLDER}/{shard_id}.json"


def manifest_ids(store: Store) -> list[str]:
    """Return the ids of all committed shards, sorted."""
    return sorted(filter(None, map(_shard_id, store.names(f"{_FOLDER}/"))))


def manifest_etags(store: Store) -> Iterator[tuple[str, str]]:
    """Yield the id of each committed shard and the etag of its manifest, from a listing."""
    for name, info in store.infos(f"{_FOLDER}/"):
        if shard_id := _shard_id(name):
            yield shard_id, info.etag


def read_shard_record(store: Store, shard_id: str) -> ShardRecord:
    """Read the manifest of a committed shard; `TableError` if it is damaged."""
    name = manifest_name(shard_id)
    document = read_json(store, name)
    try:
        record = ShardRecord.from_dict(document)
    except (KeyError, TypeError) as error:
        raise TableError(
            f"'{store.uri(name)}' is not a shard manifest ({error}): delete it, and the next run "
            "does its shard again"
        ) from error
    if record.shard != shard_id:
        raise TableError(
            f"'{store.uri(name)}' is the manifest of shard '{record.shard}': delete it, and the "
            "next run does its shard again"
        )
    return record


def _shard_id(name: str) -> str:
    """Return the id of the shard whose manifest has this name; "" if the name is of no manifest."""
    return name[len(_FOLDER) + 1 : -5] if name.endswith(".json") else ""


def _part_to_dict(part: PartRecord) -> dict[str, Any]:
    return {name: getattr(part, name) for name in _PART_FIELDS}


def _part_from_dict(document: Any) -> PartRecord:
    if not isinstance(document, dict):
        raise TypeError(f"a part is {document!r}")
    unknown = document.keys() - set(_PART_FIELDS)
    if unknown:
        raise TypeError(f"a part has '{min(unknown)}'")
    part = PartRecord(**document)
    check_types(part)
    return part
