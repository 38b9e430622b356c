"""Catalogue of the kinds of bad input, and their shares in a mixed run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from tests.fuzz.kind import Kind

MODULES = tuple(
    f"tests.fuzz.{name}"
    for name in (
        "images",
        "archives",
        "settings",
        "naming",
        "tables",
        "queries",
        "weights",
        "codes",
    )
)
_BY_NAME = {
    kind.name: (module, kind)
    for module in MODULES
    for kind in importlib.import_module(module).KINDS
}
KINDS = {name: kind for name, (_, kind) in _BY_NAME.items()}


def plan(count: int, seed: int, only: str | None = None) -> list[tuple[str, Kind, Sequence[int]]]:
    """Return (module, kind, seeds) of `count` cases over all kinds by share, or of one kind."""
    chosen = [only] if only else list(KINDS)
    shares = sum(KINDS[name].share for name in chosen)
    planned = []
    for name in chosen:
        module, kind = _BY_NAME[name]
        cases = count if only else max(1, round(count * kind.share / shares))
        planned.append((module, kind, range(seed, seed + cases)))
    return planned


def again(name: str, seeds: Sequence[int]) -> list[tuple[str, Kind, Sequence[int]]]:
    """Return the cases of one kind with these seeds, in the form of `plan`."""
    return [(*_BY_NAME[name], seeds)]
