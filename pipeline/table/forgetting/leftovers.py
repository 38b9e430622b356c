"""List the places that a forget cannot erase, in words for people."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.storage import Store, is_local
from pipeline.storage.s3 import is_bucket, keeps_versions
from pipeline.table.spec import TableSpec


def leftovers(store: Store, spec: TableSpec, mentions: Sequence[str] = ()) -> list[str]:
    """Return one line for each place that is not changed; `mentions` are files of the table."""
    place = spec.layout.get("input") or spec.config.get("images") or spec.config.get("input")
    lines = [
        f"the images themselves, in '{place}'" if place else "the images or codes it was made from",
        _copies(store),
        "files made from the table (exports, reports, pictures), copies of it, logs, and models "
        "that were trained on them",
        "tables elsewhere: a table does not know which tables were made from it",
        "other photos of a person, and other encodings under other names: they have other bytes",
    ]
    if mentions:
        listed = ", ".join(f"'{name}'" for name in mentions)
        lines.append(f"a name that is part of how the table was made, in {listed}")
    return lines


def _copies(store: Store) -> str:
    if is_local(store.root):
        return "snapshots and backups of the disk, and its freed blocks until they are reused"
    versions = keeps_versions(store.fs, store.path()) if is_bucket(store.fs) else None
    if versions:
        return (
            f"VERSIONS of replaced objects: the bucket keeps them; delete the earlier versions "
            f"below '{store.root}'"
        )
    kept = "backups and replicas of the bucket, and uploads that were never completed"
    return kept if versions is False else f"versions of replaced objects, if it keeps any; {kept}"
