"""Resume check: a training continues only with the settings that it started with.

A checkpoint does not record its settings. Resumed with another rate, seed or loss it would give a
model that no settings describe, and its best weights may be from before the change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.choices import EARLIER_SEARCH
from pipeline.errors import ConfigError, FingerprintError, printable
from pipeline.storage import OutputKind, Store, canonical_uri
from pipeline.storage.output_check import first_names
from pipeline.training.config import EARLIER_VALUES, MAY_CHANGE, TrainConfig

SETTINGS = "_train.json"
ORIGIN = "origin"  # key of the origin in SETTINGS
ENCODER = "encoder"  # name of the checkpoint
CROPS = "crops"  # folder of the training data, in subfolders named by a digest
_DIGEST = re.compile(r"[0-9a-f]{12}/")


@dataclass(frozen=True)
class Origin:
    """Digests of a training's inputs; the contents of their paths may change."""

    crops: str
    start: str  # initial weights


def _is_training(store: Store, names: Sequence[str]) -> bool:
    """Return whether a folder is of a training; its crops are written before its settings."""
    if store.exists(SETTINGS):
        return True
    crops = first_names(Store(store.uri(CROPS))) if set(names) <= {f"{CROPS}/", "_ray/"} else []
    return bool(crops) and all(map(_DIGEST.fullmatch, crops))


TRAINING_OUTPUT = OutputKind("a training", _is_training)


def check_settings(config: TrainConfig, origin: Origin | None = None) -> None:
    """Raise if the output has a checkpoint of a training with other settings.

    Raises `FingerprintError` with a line for each setting that differs, or when `origin` differs,
    and `ConfigError` when the settings of the checkpoint are missing or unreadable. Passes when
    there is no checkpoint.
    """
    store = Store(config.output)
    stored = stored_settings(store, SETTINGS, ENCODER)
    if stored is None:
        return
    stored_origin = stored.pop(ORIGIN, None)
    try:
        before = TrainConfig(**{**EARLIER_VALUES, **stored})
        first_origin = Origin(**stored_origin) if stored_origin else None
    except (ValidationError, TypeError) as error:
        raise _unreadable(store, SETTINGS, "does not have the settings of a training") from error
    check_same_settings(store.root, _comparable(before), _comparable(config), MAY_CHANGE)
    if origin and first_origin:
        _check_same_origin(config, first_origin, origin)


def _check_same_origin(config: TrainConfig, before: Origin, now: Origin) -> None:
    inputs = [
        (before.crops != now.crops, f"the images in '{config.input}'"),
        (before.start != now.start, f"the weights in '{config.model or config.generator}'"),
    ]
    changed = " and ".join(text for differs, text in inputs if differs)
    if changed:
        raise FingerprintError(
            f"{changed} have changed since the training in '{config.output}' started: "
            "choose another output, or restore them"
        )


def save_settings(config: TrainConfig, origin: Origin | None = None) -> None:
    """Write the settings of the training and the digests of its inputs to its output."""
    settings = config.model_dump(exclude_none=True)
    if origin:
        settings[ORIGIN] = asdict(origin)
    Store(config.output).put(SETTINGS, json.dumps(settings, indent=2).encode())


def stored_settings(store: Store, document: str, checkpoint: str) -> dict[str, Any] | None:
    """Read from `document` the settings of the training whose `<checkpoint>.pt` is in `store`.

    Returns None when there is no checkpoint. Raises `ConfigError` when there is a checkpoint but no
    readable settings.
    """
    if not store.exists(f"{checkpoint}.pt"):
        return None
    if not store.exists(document):
        raise _unreadable(store, document, f"is missing beside {checkpoint}.pt")
    try:
        settings = json.loads(store.get(document))
    except ValueError as error:
        raise _unreadable(store, document, "is not JSON") from error
    if not isinstance(settings, dict):
        raise _unreadable(store, document, "is not a JSON object")
    return settings


def check_same_settings(
    folder: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: Collection[str],  # dotted names, as from `flatten`
) -> None:
    """Raise `FingerprintError` with a line for each setting that differs and must not."""
    old, new = flatten(before), flatten(now)
    lines = [
        f"{name}: {_as_text(old.get(name))} at the start, {_as_text(new.get(name))} now"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change and old.get(name) != new.get(name)
    ]
    if lines:
        listed = "\n  ".join(map(printable, lines))
        raise FingerprintError(
            f"the training in '{folder}' started with other settings; choose another output or "
            f"the same settings:\n  {listed}"
        )


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names, with values as JSON has them."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return dict(_leaves("", plain))


def _leaves(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings in a form to compare.

    URIs are canonical. Face search settings are not compared for prealigned images, which do not
    use them.
    """
    unused = EARLIER_SEARCH if config.prealigned else {}
    uris = {"input": canonical_uri(config.input)}
    if config.target:
        uris["target"] = canonical_uri(config.target)
    return {**config.model_dump(), **unused, **uris}


def _as_text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _unreadable(store: Store, document: str, why: str) -> ConfigError:
    return ConfigError(
        f"'{store.uri(document)}' {why}, so the settings of the checkpoint there are not known: "
        "choose another output, or delete that folder's contents"
    )
