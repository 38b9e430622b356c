"""All kinds of bad input, and how many cases of a mixed run each of them gets."""

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
_FOUND = {
    kind.name: (module, kind)
    for module in MODULES
    for kind in importlib.import_module(module).KINDS
}
KINDS = {name: kind for name, (_, kind) in _FOUND.items()}


def plan(count: int, seed: int, only: str | None = None) -> list[tuple[str, Kind, Sequence[int]]]:
    """(module, kind, seeds) of `count` cases over all kinds by their shares, or of one kind."""
    chosen = [only] if only else list(KINDS)
    shares = sum(KINDS[name].share for name in chosen)
    planned = []
    for name in chosen:
        module, kind = _FOUND[name]
        cases = count if only else max(1, round(count * kind.share / shares))
        planned.append((module, kind, range(seed, seed + cases)))
    return planned


def again(name: str, seeds: Sequence[int]) -> list[tuple[str, Kind, Sequence[int]]]:
    """The cases of one kind with these seeds, as `plan` has them."""
    return [(*_FOUND[name], seeds)]
