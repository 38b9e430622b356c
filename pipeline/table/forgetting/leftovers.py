"""Texts that name forgotten images, and the places that a forget cannot erase."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.storage import Store, is_local
from pipeline.storage.s3 import is_bucket, keeps_versions
from pipeline.table.runs import run_names
from pipeline.table.spec import SPEC_NAME, TableSpec, read_json, to_json

BLANKED = "[removed: it named an image that was forgotten]"
_ERRORS = ("errors", "warnings", "traces")
# Messages and conditions have names in quotation marks, or as words.
_WORD = re.compile(r"'((?:[^']|'')*)'|\"([^\"]*)\"|([^\s'\"]+)")


def blank_mentions(store: Store, names: set[str]) -> tuple[str, ...]:
    """Replace messages and conditions of run records that have one of `names` as a word.

    `names` are ids, keys, URIs and hashes of images.

    Return the names of files that name one elsewhere, such as an input that is the image itself.
    These stay, like `_table.json`, which never changes.
    """
    if not names:
        return ()
    left = []
    for name in run_names(store):
        document = read_json(store, name)
        blanked = _blanked(document, names)
        if blanked != document:
            store.put(name, to_json(blanked))
        if _mentions(blanked, names):
            left.append(name)
    if _mentions(read_json(store, SPEC_NAME), names):
        left.append(SPEC_NAME)
    return tuple(left)


def _blanked(document: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a run record whose messages, and whose condition, name none of `names`."""
    changed: dict[str, Any] = {
        field: [BLANKED if _mentions(text, names) else text for text in document[field]]
        for field in _ERRORS
        if isinstance(document.get(field), list)
    }
    for part in ("config", "settings"):
        values = document.get(part)
        if isinstance(values, dict) and _mentions(values.get("where"), names):
            changed[part] = values | {"where": BLANKED}
    return document | changed


def _mentions(value: Any, names: set[str]) -> bool:
    """Return whether a text, or any text in a JSON value, has one of the names as a word."""
    if isinstance(value, dict):
        return any(_mentions(item, names) for item in value.values())
    if isinstance(value, list):
        return any(_mentions(item, names) for item in value)
    if not isinstance(value, str):
        return False
    return value in names or any(
        word.replace("''", "'") in names or word.strip("()[],;:.") in names
        for match in _WORD.finditer(value)
        for word in match.groups()
        if word
    )


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
