"""`_table.json`: the spec of a table, written once, and the check that later runs match it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from pipeline.choices import EARLIER_ALIGNMENT
from pipeline.errors import (
    ConfigError,
    FingerprintError,
    InputError,
    RequestError,
    TableError,
    printable,
)
from pipeline.metrics.registry import best_alone
from pipeline.redaction import HIDDEN, clean
from pipeline.storage import OutputKind, Store
from pipeline.table.schema import SCHEMA_VERSION, Columns

SPEC_NAME = "_table.json"

# Settings that earlier versions did not have, with the value that gives their behaviour. A setting
# with this value is left out of `_table.json` and of the fingerprint, so that a run with this value
# continues a table that was made before the setting existed.
EARLIER_VALUES: Mapping[str, Any] = {
    "columns.edited": False,
    "columns.identity": False,
    "columns.kept": [],
    "columns.turn_deg": False,
    "layout.image_column": None,
    "layout.image_field": "all",
    "layout.sniff": False,
    "settings.identity_steps": "all",
    "settings.precision": "float32",
    **{
        f"{settings}.{name}": value
        for settings in ("settings.alignment", "settings.measured.alignment")
        for name, value in EARLIER_ALIGNMENT.items()
    },
}

# The flag behind each recorded setting. A refusal names it with the table's own value.
FLAGS: Mapping[str, str] = {
    "columns.aligned_jpeg": "--keep-crops",
    "columns.all_steps": "--keep-steps",
    "columns.identity": "--keep-identity",
    "columns.kept": "--keep-columns",
    "columns.reconstruction_jpeg": "--keep-reconstructions",
    "columns.w_plus_dtype": "--latent-dtype",
    "layout.files_per_shard": "--files-per-shard",
    "layout.image_column": "--image-column",
    "layout.image_field": "--image-field",
    "layout.limit": "--limit",
    "layout.sniff": "--sniff",
    "settings.alignment.check_below": "--check-below",
    "settings.alignment.coarse_side": "--coarse-side",
    "settings.alignment.faces": "--faces",
    "settings.alignment.fit": "--fit",
    "settings.alignment.icc": "--icc",
    "settings.alignment.max_pixels": "--max-pixels",
    "settings.alignment.min_face_px": "--min-face",
    "settings.alignment.prealigned": "--prealigned",
    "settings.alignment.search_pixels": "--search-pixels",
    "settings.alignment.turns": "--turns",
    "settings.best_step_by": "--best-step-by",
    "settings.identity": "--identity",
    "settings.identity_steps": "--identity-steps",
    "settings.limit": "--limit",
    "settings.measured.alignment.check_below": "--check-below",
    "settings.measured.alignment.coarse_side": "--coarse-side",
    "settings.measured.alignment.icc": "--icc",
    "settings.measured.alignment.search_pixels": "--search-pixels",
    "settings.measured.alignment.turns": "--turns",
    "settings.method.name": "--method",
    "settings.model": "--model",
    "settings.order": "--order",
    "settings.precision": "--precision",
    "settings.target": "--target",
    "settings.steps": "--steps",
    "settings.where": "--where",
}
NOT_MEASURED = "not measured"  # in place of a metric's definition
_DERIVED = {"columns.turn_deg"}  # from settings that are compared themselves
# These settings record a hash or a definition; the value of the flag is in the table's config.
_BY_CONFIG = ("columns.kept", "settings.identity", "settings.model")
# Settings without a value: to get it, leave the flag out.
_WITHOUT_FLAG = ("columns.kept", "layout.image_column", "layout.limit")


@dataclass(frozen=True)
class TableSpec:
    """Description of a table, stored in `_table.json`.

    `settings` holds everything that changes a result (weights, steps, alignment, version of the
    numerics); the fingerprint is its hash. `layout` determines which image is in which shard
    (`files_per_shard`). `config`, `model` (name, licence, source, ...) and `metrics` (metric name
    -> net, version, input size) are information for users.
    """

    columns: Columns
    settings: Mapping[str, Any]
    layout: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for part in ("settings", "layout"):
            object.__setattr__(self, part, without_earlier(part, getattr(self, part)))

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of `settings` as canonical JSON."""
        text = json.dumps(_plain(self.settings), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def best_alone(self) -> tuple[str, ...]:
        """Metrics that are measured at the best step alone: others in their lists are null."""
        return best_alone(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the document of `_table.json`."""
        return {
            "schema_version": self.schema_version,
            "fingerprint": self.fingerprint,
            "columns": without_earlier("columns", _plain(asdict(self.columns))),
            "settings": _plain(self.settings),
            "layout": _plain(self.layout),
            "model": _plain(self.model),
            "metrics": _plain(self.metrics),
            "config": _plain(self.config),
        }


def read_spec(store: Store) -> TableSpec:
    """Read the spec of the table at `store`.

    Raises `InputError` if there is no table, and `TableError` if the spec is damaged or of another
    schema version.
    """
    if not store.exists(SPEC_NAME):
        raise InputError(f"'{store.root}' is not a table: it has no {SPEC_NAME}")
    document = read_json(store, SPEC_NAME)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TableError(
            f"the table '{store.root}' has schema version {version}; this code reads version "
            f"{SCHEMA_VERSION}: read it with the version of the code that made it"
        )
    names = ("settings", "layout", "config", "model", "metrics")
    try:
        columns = Columns(**document["columns"])
        check_types(columns)
        columns.latents_schema()
        parts: dict[str, Any] = {name: document[name] for name in names}
        for name, part in parts.items():
            if not isinstance(part, dict):
                raise TypeError(f"its {name} is not a JSON object")  # noqa: TRY301
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TableError(f"'{store.uri(SPEC_NAME)}' is incomplete: {error}") from error
    return TableSpec(columns, **parts)


def _is_table(store: Store, names: Sequence[str]) -> bool:
    """Return whether a folder with files is a table; its spec is the first file written."""
    if store.exists(SPEC_NAME):
        return True
    if {"_shards/", "_runs/"} & {*names}:
        raise ConfigError(
            f"the output '{store.root}' is a table that has lost its {SPEC_NAME}, which records "
            "how it was made: put that file back, or choose another output"
        )
    return False


TABLE_OUTPUT = OutputKind("a table of latents", _is_table)


def check_existing(store: Store, requested: TableSpec) -> TableSpec:
    """Return the spec of the table at `store`, which a run with the `requested` spec may continue.

    Raises `FingerprintError` with one line for each setting that differs if the table was made
    with other settings, columns or layout. Raises `RequestError` if the table's spec cannot be
    read, because repeating the command does not help.
    """
    try:
        existing = read_spec(store)
    except TableError as error:
        raise RequestError(
            f"{error}; choose another output, or restore its {SPEC_NAME} and continue this table "
            "with the version of the code that made it"
        ) from error
    check_same(store.root, existing, requested)
    return existing


def create_or_check_spec(store: Store, spec: TableSpec) -> TableSpec:
    """Write `_table.json` if it does not exist; otherwise check it. Return the stored spec.

    Raises the errors of `check_existing`.
    """
    if store.put_if_absent(SPEC_NAME, to_json(spec.to_dict())):
        return spec
    return check_existing(store, spec)


def check_same(root: str, existing: TableSpec, requested: TableSpec) -> None:
    """Raise `FingerprintError` if the two specs give different tables.

    The message has one line per difference, and the flags that continue the table as it was made.
    """
    old, new = existing.to_dict(), requested.to_dict()
    differences: list[_Difference] = []
    for part in ("settings", "columns", "layout"):
        differences += _differences(part, old[part], new[part])
    differences = [each for each in differences if each.name not in _DERIVED] or differences
    if differences:
        listed = "\n  ".join(printable(str(difference)) for difference in differences)
        raise FingerprintError(
            f"the table '{root}' was made with other settings; take them back or choose another "
            f"output:\n  {listed}{_continuing_flags(differences, existing.config)}"
        )


class _Difference(NamedTuple):
    """Setting, named by its path, whose value in the table differs from the requested one."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        label = FLAGS.get(self.name, self.name.removeprefix("settings."))
        return f"{label}: {json.dumps(self.old)} in the table, {json.dumps(self.new)} asked for"


def _differences(name: str, old: Any, new: Any) -> Iterator[_Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            path = f"{name}.{key}"
            earlier = EARLIER_VALUES.get(path)
            yield from _differences(path, old.get(key, earlier), new.get(key, earlier))
    elif old != new:
        yield _Difference(name, old, new)


def _continuing_flags(differences: list[_Difference], config: Mapping[str, Any]) -> str:
    """Return the line with the flags that give the table's values; "" if there are none."""
    flags, absent = [], []
    for name, old, _ in differences:
        flag = FLAGS.get(name)
        value = config.get(config_name(name)) if name in _BY_CONFIG else old
        if name == "settings.identity" and value is None and old == NOT_MEASURED:
            value = "none"  # the default for the model's domain when the table was made
        if flag and isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif flag and value is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            flags.append(f"{flag} {shlex.quote(printable(text))}")
        elif name in _WITHOUT_FLAG:
            absent.append(f"no {flag}")
    line = " ".join([*flags, *absent])
    return f"\nto continue it as it was made: {line}" if line else ""


def config_name(setting: str) -> str:
    """Return the name in a table's config of the flag behind a setting."""
    return FLAGS[setting].removeprefix("--").replace("-", "_")


def without_earlier(name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `value` without the settings that have their value of `EARLIER_VALUES`."""
    kept = {}
    for key, item in value.items():
        path = f"{name}.{key}"
        if path in EARLIER_VALUES and item == EARLIER_VALUES[path]:
            continue
        kept[key] = without_earlier(path, item) if isinstance(item, Mapping) else item
    return kept


def _plain(value: Any) -> Any:
    """Convert to JSON and back, so that tuples equal lists and integer keys equal texts."""
    return json.loads(json.dumps(value, default=str))


_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|token$|credential|(access|api|account|private)_?key|jwt|authorization"
    r"|connection_string",
    re.I,
)


def to_json(document: dict[str, Any]) -> bytes:
    """Return `document` as indented UTF-8 JSON, with credentials replaced by `***`."""
    cleaned = _hide_named(clean(document))
    text = json.dumps(cleaned, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def read_json(store: Store, name: str) -> dict[str, Any]:
    """Read the JSON object under `name`; `TableError` if it is not one."""
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
    """Raise `TypeError` if a dataclass's str, int (64 bits) or bool field has another type.

    A JSON document that another program wrote may hold any type in any field.
    """
    for each in fields(record):
        value, expected = getattr(record, each.name), _PLAIN.get(str(each.type))
        if expected and type(value) is not expected:
            raise TypeError(f"'{each.name}' is a {type(value).__name__}")
        if expected is int and not -(2**63) <= value < 2**63:
            raise TypeError(f"'{each.name}' does not fit into 64 bits")


def _hide_named(value: Any) -> Any:
    """Hide values whose key names a credential, and escape texts that UTF-8 cannot encode."""
    if isinstance(value, dict):
        return {
            str(name): HIDDEN if item and _SECRET_NAME.search(str(name)) else _hide_named(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hide_named(item) for item in value]
    if isinstance(value, str):
        # A lone surrogate (a file name that is not UTF-8) has no UTF-8 form.
        return value.encode("utf-8", "backslashreplace").decode()
    return value
