"""Find tables that may hold faces of the same images as a table: those made from it, for example.

A table knows its parent and not its children: `_table.json` names the table of `--init`, of
`--refined-from` or of an edit. So the folders beside a table are looked through, and tables that
the caller names. Tables elsewhere, and exported files, cannot be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage import Store, canonical_uri
from pipeline.storage.output_check import names_in
from pipeline.storage.uris import storage_errors
from pipeline.table.forgetting.erase import forgotten_rows
from pipeline.table.forgetting.forgotten import Forgotten
from pipeline.table.reader import Table, open_table
from pipeline.table.spec import SPEC_NAME, TableSpec

MAX_SIBLINGS = 1000


@dataclass(frozen=True)
class Descendant:
    """Table that has the same images as another one: its URI, why, and its rows of some images."""

    table: str
    why: str
    rows: int  # of latents and rejects

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dict(vars(self))


def find_descendants(
    store: Store, spec: TableSpec, forgotten: Forgotten, named: Sequence[str] = ()
) -> list[Descendant]:
    """Return the tables made from this one, or from its input, among its siblings and `named`.

    Tables made from these are returned too, and all of `named`. Each has its number of rows of
    `forgotten` images. Raises `RequestError` if one of `named` is not a table.
    """
    given = [open_table(uri) for uri in named]
    roots = {candidate.store.root for candidate in given}
    siblings = [each for each in _siblings(store) if each.store.root not in roots]
    reasons: dict[str, str] = {}
    _follow(store.root, [*given, *siblings], reasons)
    for candidate in given:
        reasons.setdefault(candidate.store.root, "named by --descendants")
    place = spec.layout.get("input")
    for candidate in siblings:
        if place is not None and candidate.spec.layout.get("input") == place:
            reasons.setdefault(candidate.store.root, "made from the same input")
    return [
        Descendant(root, why, sum(1 for _ in forgotten_rows(Store(root), forgotten)))
        for root, why in sorted(reasons.items())
    ]


def _follow(root: str, candidates: Sequence[Table], reasons: dict[str, str]) -> None:
    """Add the candidates that were made from the table at `root`, and those made from these."""
    origins = [root]
    for origin in origins:  # which grows
        for candidate in candidates:
            child = candidate.store.root
            setting = _setting_with(candidate.spec, origin)
            if setting and child != origin and child not in reasons:
                reasons[child] = f"made from '{origin}' ({setting})"
                origins.append(child)


def _setting_with(spec: TableSpec, root: str) -> str:
    """Return the name of the setting whose value is the table at `root`; "" if there is none."""
    for name, value in spec.config.items():
        if name not in ("input", "output") and isinstance(value, str) and value:
            try:
                if canonical_uri(value) == root:
                    return str(name)
            except PipelineError:
                continue
    return ""


def _siblings(store: Store) -> Iterator[Table]:
    """Yield the readable tables in the folder that the table is in."""
    parent = store.root.rstrip("/").rpartition("/")[0]
    if not parent or parent.endswith(("/", ":")):
        return  # a whole bucket
    for root in _folders(Store(parent)):
        if root != store.root:
            try:
                if Store(root).exists(SPEC_NAME):
                    yield open_table(root)
            except PipelineError:
                continue


def _folders(parent: Store) -> list[str]:
    """Return the URIs of the first folders right below `parent`; none if it cannot be listed."""
    try:
        with storage_errors(f"list '{parent.root}'"):
            folders = (name for name in names_in(parent) if name.endswith("/"))
            return sorted(parent.uri(name[:-1]) for name in islice(folders, MAX_SIBLINGS))
    except PipelineError:
        return []
