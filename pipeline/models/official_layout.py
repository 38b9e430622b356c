"""Split an official checkpoint dictionary into weights, options and average latent.

Accepts what the official loaders accept: keys under `encoder.` and `decoder.` are used, all others
are ignored, and a dictionary without `state_dict` is itself the state dict. In addition, prefixes
of wrappers are removed from keys (`module.` of DataParallel, `_orig_mod.` of torch.compile).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.safe_globals import plain

_WRAPPERS = {"module", "_orig_mod"}
_NETWORKS = ("encoder.", "decoder.")
_NAMED = 2  # ignored entries that a note lists by name
_LONGEST_NAME = 60
_GENERATOR_INPUT = "input.input"  # the learned 4x4 map that every generator's file has


@dataclass(frozen=True)
class Parts:
    """Contents of a checkpoint: weights (`encoder.*`, `decoder.*`), options, average latent.

    `notes` lists entries that were not used. `latent_avg` is the file's value, unchecked, or None.
    """

    state: dict[str, Tensor]
    options: dict[str, Any]
    latent_avg: Any = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def generator_alone(self) -> bool:
        """Return whether the weights are those of a generator without an encoder."""
        return bool(self.state) and all(key.startswith("decoder.") for key in self.state)

    @property
    def heads(self) -> int:
        """Number of style heads of the encoder."""
        matches = (re.match(r"encoder\.styles\.(\d+)\.", key) for key in self.state)
        return len({match[1] for match in matches if match})


def read_parts(checkpoint: Mapping[str, Any], source: str) -> Parts:
    """Return the parts of an official dictionary, a bare state dict, or a generator's `g_ema`.

    `source` names the file in errors. Raises `ModelError` if it holds no such weights, two weights
    of one name, or a value that is not a tensor under such a name.
    """
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise ModelError(f"{source}: is a {kind}, expected the official dictionary")
    options = _options(checkpoint.get("opts"), source)
    entries = _entries(checkpoint, source)
    average = plain(checkpoint.get("latent_avg"))
    if average is None:
        average = plain(entries.pop("latent_avg", None))
    state = {key: plain(value) for key, value in entries.items() if key.startswith(_NETWORKS)}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{source}: weight '{key}' is a {type(value).__name__}, not a tensor")
    ignored = [key for key in entries if key not in state]
    parts = Parts(state, options, average, _notes(ignored))
    if parts.generator_alone:
        # A generator's file has no options; its file name may hint at the domain.
        return Parts(state, {"stylegan_weights": source, **options}, average, parts.notes)
    return parts


def _notes(ignored: list[str]) -> dict[str, str]:
    if not ignored:
        return {}
    names = ", ".join(key[:_LONGEST_NAME] for key in ignored[:_NAMED])
    more = ", ..." if len(ignored) > _NAMED else ""
    entries = "1 entry" if len(ignored) == 1 else f"{len(ignored)} entries"
    return {"ignored": f"ignored {entries} outside encoder and decoder ({names}{more})"}


def _entries(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the state dict without wrapper prefixes; a generator's keys as `decoder.*`."""
    state = checkpoint.get("state_dict")
    if isinstance(state, Mapping) and state:
        return _unwrapped(state, source)
    if "state_dict" not in checkpoint:
        if isinstance(generator := checkpoint.get("g_ema"), Mapping) and generator:
            return _as_decoder(_unwrapped(generator, source))
        bare = _unwrapped(checkpoint, source)
        if any(key.startswith("generator.") for key in bare):
            raise ModelError(
                f"{source}: these are the weights of a bundle; give the bundle's folder, which "
                "also holds their model.json"
            )
        if any(key.startswith(_NETWORKS) for key in bare):
            bare.pop("opts", None)
            return bare
        if _GENERATOR_INPUT in bare:
            return _as_decoder(bare)
    have = ", ".join(map(repr, list(checkpoint)[:4])) or "nothing"
    raise ModelError(f"{source}: no 'state_dict', so not a ReStyle checkpoint (found {have})")


def _as_decoder(generator: dict[str, Any]) -> dict[str, Any]:
    average = {key: generator.pop(key) for key in ("latent_avg",) if key in generator}
    return {**average, **{f"decoder.{key}": value for key, value in generator.items()}}


def _unwrapped(state: Mapping[Any, Any], source: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in state.items():
        name = ".".join(word for word in str(key).split(".") if word not in _WRAPPERS)
        if name in entries:
            raise ModelError(f"{source}: holds '{name}' twice, once as '{key}'")
        entries[name] = value
    return entries


def _options(given: object, source: str) -> dict[str, Any]:
    """Return `opts` as a dictionary of plain values; an absent one is empty."""
    options = {} if given is None else given
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, Mapping):
        raise ModelError(f"{source}: 'opts' is a {type(options).__name__}, not a dict")
    options = {name: plain(value) for name, value in options.items()}
    for name, value in options.items():
        if isinstance(value, Tensor):
            raise ModelError(f"{source}: option '{name}' is a tensor, expected text or a number")
    return options
