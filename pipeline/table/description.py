"""`_table.json`: what a table is, made once, and the check that a later run means the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import FingerprintError, InputError, RequestError, TableError, printable
from pipeline.storage import Store
from pipeline.table.documents import check_types, read_json, to_json
from pipeline.table.schema import SCHEMA_VERSION, Columns

DESCRIPTION_NAME = "_table.json"


@dataclass(frozen=True)
class Description:
    """All that a table says of itself.

    `settings` is everything that changes a result (weights, steps, alignment, version of the
    numerics): the fingerprint is its hash. `layout` is what fixes which image is in which shard
    (`files_per_shard`). `config`, `model` (name, licence, source, ...) and `metrics` (metric
    name -> net, version, input size) are for people.
    """

    columns: Columns
    settings: Mapping[str, Any]
    layout: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of `settings` as canonical JSON."""
        text = json.dumps(_plain(self.settings), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The document that stands in `_table.json`."""
        return {
            "schema_version": self.schema_version,
            "fingerprint": self.fingerprint,
            "columns": asdict(self.columns),
            "settings": _plain(self.settings),
            "layout": _plain(self.layout),
            "model": _plain(self.model),
            "metrics": _plain(self.metrics),
            "config": _plain(self.config),
        }


def read_description(store: Store) -> Description:
    """The description of the table at `store`; `InputError` naming it if there is no table."""
    if not store.exists(DESCRIPTION_NAME):
        raise InputError(f"'{store.root}' is not a table: it has no {DESCRIPTION_NAME}")
    document = read_json(store, DESCRIPTION_NAME)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TableError(
            f"the table '{store.root}' has schema version {version}; this code reads version "
            f"{SCHEMA_VERSION}: read it by the version of the code that made it"
        )
    names = ("settings", "layout", "config", "model", "metrics")
    try:
        columns = Columns(**document["columns"])
        check_types(columns)
        columns.latents_schema()
        parts: dict[str, Any] = {name: dict(document[name]) for name in names}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TableError(f"'{store.uri(DESCRIPTION_NAME)}' is incomplete: {error}") from error
    return Description(columns, **parts)


def check_existing(store: Store, asked: Description) -> Description:
    """The description of the table at `store`, which a run with `asked` may go on with.

    Raises `FingerprintError` with one line for each setting that differs if the table was made
    with other settings, columns or layout, and `RequestError` if nobody can tell: then the same
    command again does not help.
    """
    try:
        existing = read_description(store)
    except TableError as error:
        raise RequestError(
            f"{error}; choose another output, or go on with this table by the version of the code "
            f"that made it, its {DESCRIPTION_NAME} as it was"
        ) from error
    check_same(store.root, existing, asked)
    return existing


def settle_description(store: Store, description: Description) -> Description:
    """Write `_table.json` if there is none; what stands there in the end.

    Raises what `check_existing` raises.
    """
    if store.put_if_absent(DESCRIPTION_NAME, to_json(description.to_dict())):
        return description
    return check_existing(store, description)


def check_same(root: str, existing: Description, asked: Description) -> None:
    """Raise `FingerprintError` if the two would give different tables."""
    lines = []
    old, new = existing.to_dict(), asked.to_dict()
    for part in ("settings", "columns", "layout"):
        lines += list(_differences(part, old[part], new[part]))
    if lines:
        listed = "\n  ".join(map(printable, lines))
        raise FingerprintError(
            f"the table '{root}' was made with other settings; take them back or choose another "
            f"output:\n  {listed}"
        )


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        label = name.removeprefix("settings.")
        yield f"{label}: {json.dumps(old)} in the table, {json.dumps(new)} asked for"


def _plain(value: Any) -> Any:
    """As JSON would give it back, so that tuples and integer keys compare equal."""
    return json.loads(json.dumps(value, default=str))
