"""Shard manifests, `_shards/<shard-id>.json`: the commit of a shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import TableError
from pipeline.storage import LeftOut, Shard, Store
from pipeline.table.documents import check_types, read_json, to_json
from pipeline.table.figures import Figures
from pipeline.table.parts import PartSummary
from pipeline.table.schema import SCHEMA_VERSION

_FOLDER = "_shards"


@dataclass(frozen=True)
class ShardManifest:
    """What a committed shard came from, and what it gave.

    `left_out` counts what its reader passed over; a manifest without it passed over nothing.
    """

    shard: str
    uri: str
    kind: str
    etag: str
    size: int
    fingerprint: str
    part_size: int
    samples: int
    faces: int
    rejects: int
    parts: tuple[PartSummary, ...]
    figures: Figures
    schema_version: int = SCHEMA_VERSION
    left_out: LeftOut = field(default_factory=LeftOut)

    @classmethod
    def of(
        cls,
        shard: Shard,
        parts: Sequence[PartSummary],
        fingerprint: str,
        part_size: int,
        left_out: Mapping[str, int] | None = None,
    ) -> ShardManifest:
        """The manifest of `shard` from all its parts; `TableError` if a part is missing."""
        parts = sorted(parts, key=lambda summary: summary.part)
        if [summary.part for summary in parts] != list(range(len(parts))):
            numbers = [summary.part for summary in parts]
            raise TableError(f"shard '{shard.shard_id}' cannot be committed with parts {numbers}")
        return cls(
            shard=shard.shard_id,
            uri=shard.source,
            kind=shard.kind,
            etag=shard.etag,
            size=shard.size,
            fingerprint=fingerprint,
            part_size=part_size,
            samples=sum(summary.samples for summary in parts),
            faces=sum(summary.faces for summary in parts),
            rejects=sum(summary.rejects for summary in parts),
            parts=tuple(replace(summary, figures="") for summary in parts),
            figures=Figures.total(Figures.from_text(summary.figures) for summary in parts),
            left_out=LeftOut(left_out or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, JSON-ready."""
        fields = asdict(self)
        for part in fields["parts"]:
            del part["figures"]
        left_out = self.left_out.ordered()
        del fields["left_out"]
        return fields | ({"left_out": left_out} if left_out else {})

    def write(self, store: Store, *, anyway: bool = False) -> bool:
        """Put the manifest, from here on the shard is done; whether this is what now stands there.

        Over another manifest it is only put `anyway`.
        """
        name, content = manifest_name(self.shard), to_json(self.to_dict())
        if anyway:
            store.put(name, content)
        return anyway or store.put_if_absent(name, content) or store.get(name) == content


def manifest_name(shard_id: str) -> str:
    """The name of a shard's manifest."""
    return f"{_FOLDER}/{shard_id}.json"


def manifest_ids(store: Store) -> list[str]:
    """The ids of all committed shards, sorted."""
    return sorted(filter(None, map(_shard_id, store.names(f"{_FOLDER}/"))))


def manifest_etags(store: Store) -> Iterator[tuple[str, str]]:
    """The id of each committed shard and the etag of its manifest, as they are listed."""
    for name, info in store.infos(f"{_FOLDER}/"):
        if shard_id := _shard_id(name):
            yield shard_id, info.etag


def _shard_id(name: str) -> str:
    """The shard whose manifest has this name; empty if no shard's does."""
    return name[len(_FOLDER) + 1 : -5] if name.endswith(".json") else ""


def read_manifest(store: Store, shard_id: str) -> ShardManifest:
    """The manifest of a committed shard; `TableError` if it is damaged."""
    name = manifest_name(shard_id)
    fields: dict[str, Any] = read_json(store, name)
    try:
        parts = tuple(PartSummary(**part) for part in fields.pop("parts"))
        figures = Figures.from_dict(fields.pop("figures"))
        left_out = LeftOut.from_dict(fields.pop("left_out", {}))
        manifest = ShardManifest(**fields, parts=parts, figures=figures, left_out=left_out)
        for record in (manifest, *parts):
            check_types(record)
    except (KeyError, TypeError) as error:
        raise TableError(
            f"'{store.uri(name)}' is not a shard manifest ({error}): delete it, and the next run "
            "does its shard again"
        ) from error
    if manifest.shard != shard_id:
        raise TableError(f"'{store.uri(name)}' is the manifest of '{manifest.shard}'")
    return manifest
