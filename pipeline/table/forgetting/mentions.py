"""Texts of run records and of the spec that name forgotten images."""

from __future__ import annotations

import re
from typing import Any

from pipeline.storage import Store
from pipeline.table.runs import RUNS_FOLDER
from pipeline.table.spec import SPEC_NAME, read_json, to_json

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
    for name in [name for name in store.names(RUNS_FOLDER) if name.endswith(".json")]:
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
