"""The settings that a training was begun with: it goes on under these, or it is refused.

A checkpoint does not say what it was trained for. Gone on with under another rate, seed or loss it
gives a model that no settings describe, whose best weights may be those of the other training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.config_loading import FaceSearch
from pipeline.errors import ConfigError, FingerprintError, printable
from pipeline.storage import OutputKind, Store, canonical_uri
from pipeline.storage.output_check import first_names
from pipeline.training.config import EARLIER_VALUES, MAY_CHANGE, TrainConfig

SETTINGS = "_train.json"
ORIGIN = "origin"  # its entry beside the settings
ENCODER = "encoder"  # the name of its checkpoint
CROPS = "crops"  # the folder of what it is trained on, in a folder named by a digest
_DIGEST = re.compile(r"[0-9a-f]{12}/")


@dataclass(frozen=True)
class Origin:
    """What a training is made from, by digests: what lies at a path may change."""

    crops: str
    start: str  # the weights that it begins with


def _is_training(store: Store, names: Sequence[str]) -> bool:
    """Return whether a folder is a training's; before its settings come its crops."""
    if store.exists(SETTINGS):
        return True
    crops = first_names(Store(store.uri(CROPS))) if set(names) <= {f"{CROPS}/", "_ray/"} else []
    return bool(crops) and all(map(_DIGEST.fullmatch, crops))


TRAINING_OUTPUT = OutputKind("a training", _is_training)


def check_settings(config: TrainConfig, origin: Origin | None = None) -> None:
    """Refuse to go on with what is at the output under settings that make it another training.

    Raises `FingerprintError` with a line for each setting that differs, or where `origin` does,
    `ConfigError` where it cannot be told what the training was begun with. Without a checkpoint
    there is nothing to spoil.
    """
    store = Store(config.output)
    begun = begun_with(store, SETTINGS, ENCODER)
    if begun is None:
        return
    known = begun.pop(ORIGIN, None)
    try:
        before = TrainConfig(**{**EARLIER_VALUES, **begun})
        made_from = Origin(**known) if known else None
    except (ValidationError, TypeError) as error:
        raise _unknown(store, SETTINGS, "does not hold the settings of a training") from error
    refuse_others(store.root, _compared(before), _compared(config), MAY_CHANGE)
    if origin and made_from:
        _refuse_other_origin(config, made_from, origin)


def _refuse_other_origin(config: TrainConfig, begun: Origin, now: Origin) -> None:
    changed = [
        (begun.crops != now.crops, f"the images in '{config.input}'"),
        (begun.start != now.start, f"the weights in '{config.model or config.generator}'"),
    ]
    what = " and ".join(text for differs, text in changed if differs)
    if what:
        raise FingerprintError(
            f"{what} are others than when the training in '{config.output}' was begun: "
            "choose another output, or restore them"
        )


def keep_settings(config: TrainConfig, origin: Origin | None = None) -> None:
    """Write down what the training at the output runs with, and what it is made from."""
    settings = config.model_dump(exclude_none=True)
    if origin:
        settings[ORIGIN] = asdict(origin)
    Store(config.output).put(SETTINGS, json.dumps(settings, indent=2).encode())


def begun_with(store: Store, document: str, checkpoint: str) -> dict[str, Any] | None:
    """The settings in `document` of the training whose `<checkpoint>.pt` is in `store`.

    None where there is no checkpoint to go on from. Raises `ConfigError` where there is one, but
    not its settings.
    """
    if not store.exists(f"{checkpoint}.pt"):
        return None
    if not store.exists(document):
        raise _unknown(store, document, f"is missing beside {checkpoint}.pt")
    try:
        settings = json.loads(store.get(document))
    except ValueError as error:
        raise _unknown(store, document, "is not JSON") from error
    if not isinstance(settings, dict):
        raise _unknown(store, document, "is not a JSON object")
    return settings


def refuse_others(
    folder: str,
    begun: Mapping[str, Any],
    asked: Mapping[str, Any],
    may_change: Collection[str],  # dotted names, as of `flat`
) -> None:
    """Raise `FingerprintError` with a line for each setting that differs and may not."""
    old, new = flat(begun), flat(asked)
    lines = [
        f"{name}: {_shown(old.get(name))} when it began, {_shown(new.get(name))} asked for"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change and old.get(name) != new.get(name)
    ]
    if lines:
        listed = "\n  ".join(map(printable, lines))
        raise FingerprintError(
            f"the training in '{folder}' was begun with other settings; choose another output or "
            f"the same settings:\n  {listed}"
        )


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names, with values as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return dict(_leaves("", plain))


def _leaves(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _compared(config: TrainConfig) -> dict[str, Any]:
    """Settings to compare: one folder may be written in several ways.

    How faces are looked for is of no account where images are said to be crops.
    """
    names = FaceSearch.model_fields if config.prealigned else ()
    unused = {name: EARLIER_VALUES[name] for name in names}
    places = {"input": canonical_uri(config.input)}
    if config.target:
        places["target"] = canonical_uri(config.target)
    return {**config.model_dump(), **unused, **places}


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _unknown(store: Store, document: str, why: str) -> ConfigError:
    return ConfigError(
        f"'{store.uri(document)}' {why}, so the training there may be another one: "
        "choose another output, or remove what is there"
    )
