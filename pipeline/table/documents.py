"""The table's JSON files: canonical text, free of credentials."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from pipeline.errors import TableError
from pipeline.redaction import HIDDEN, clean
from pipeline.storage import Store

_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|token$|credential|(access|api|account|private)_?key|jwt|authorization"
    r"|connection_string",
    re.I,
)


def to_json(document: dict[str, Any]) -> bytes:
    """`document` as indented UTF-8 JSON; what is or looks like a credential becomes `***`."""
    text = json.dumps(
        _without_named(clean(document)), indent=2, ensure_ascii=False, allow_nan=False
    )
    return (text + "\n").encode()


def read_json(store: Store, name: str) -> dict[str, Any]:
    """The JSON object under `name`; `TableError` if it is something else."""
    content = store.get(name)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TableError(f"'{store.uri(name)}' is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TableError(f"'{store.uri(name)}' is not a JSON object")
    return document


_PLAIN = {"str": str, "int": int, "bool": bool}


def check_types(record: Any) -> None:
    """Raise `TypeError` if a dataclass's text, integer (of 64 bits) or truth value is none.

    JSON that another program wrote fills any type into any field.
    """
    for field in fields(record):
        value, wanted = getattr(record, field.name), _PLAIN.get(str(field.type))
        if wanted and type(value) is not wanted:
            raise TypeError(f"'{field.name}' is a {type(value).__name__}")
        if wanted is int and not -(2**63) <= value < 2**63:
            raise TypeError(f"'{field.name}' is larger than any integer of a table")


def _without_named(value: Any) -> Any:
    """`value` without what stands under a credential's name, and with texts that UTF-8 can hold."""
    if isinstance(value, dict):
        return {
            str(name): HIDDEN if item and _SECRET_NAME.search(str(name)) else _without_named(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_named(item) for item in value]
    if isinstance(value, str):
        # A lone surrogate (a file name that is not UTF-8) has no UTF-8 form.
        return value.encode("utf-8", "backslashreplace").decode()
    return value
