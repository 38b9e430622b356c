"""Choose the images to forget: by a condition on rows, or by the list of another table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import RequestError
from pipeline.storage import Store
from pipeline.table.forgetting.forgotten import FORGOTTEN, ForgetList, Forgotten, Source
from pipeline.table.reader import Table
from pipeline.table.selection import Selection
from pipeline.table.statements import condition

_NAMES = "source_uri, source_sha256, face_index, key"
_BATCH_ROWS = 1024
_SHORTEST_NAME = 4  # of a key, without extension, that a reason must not repeat


@dataclass
class _Image:
    """Chosen rows of one image."""

    sha256: str
    chosen: int = 0  # rows of latents
    numbers: set[int | None] = field(default_factory=set)  # of faces; None: a reject of the image


def choose_sources(selection: Selection) -> tuple[list[Source], set[str]]:
    """Return the images that a selection means, and their keys.

    The condition chooses faces and, if it uses no column that rejects lack, rejects too, unless it
    has an order or a limit. If it chooses all faces that the table has of an image, the whole image
    is meant, otherwise single faces of it.
    """
    images: dict[str, _Image] = {}
    keys: set[str] = set()
    rejected = _rejected(selection)
    latents = _rows(selection, f"SELECT {_NAMES}, 1 AS chosen FROM {selection.source}")
    rejects = _rows(selection, f"SELECT {_NAMES}, 0 AS chosen FROM {rejected}")
    for row in (*latents, *rejects):
        image = images.setdefault(row["source_uri"], _Image(row["source_sha256"] or ""))
        image.chosen += row["chosen"]
        image.numbers.add(row["face_index"])
        keys.add(row["key"])
    stored = {
        row["source_uri"]: row["faces"]
        for row in _rows(
            selection,
            "SELECT source_uri, count(*) AS faces FROM latents WHERE source_uri IN (SELECT "
            f"source_uri FROM {selection.source} UNION SELECT source_uri FROM {rejected}) GROUP BY "
            "source_uri",
        )
    }
    sources = [
        source
        for uri, image in images.items()
        for source in _sources(uri, image, stored.get(uri, 0))
    ]
    return sources, keys


def _sources(uri: str, image: _Image, stored: int) -> Iterator[Source]:
    """Yield the whole image if all its `stored` faces are chosen, otherwise the chosen faces."""
    if None in image.numbers or image.chosen >= stored:
        yield Source(image.sha256, uri)
    else:
        yield from (Source(image.sha256, uri, face) for face in image.numbers)


def _rejected(selection: Selection) -> str:
    """Return the SQL of the rejects that the condition chooses, as a table in parentheses."""
    nothing = "(SELECT * FROM rejects WHERE false)"
    if selection.order or selection.limit is not None or not selection.where:
        return nothing
    nameless = f"reason = '{FORGOTTEN}' AND source_uri = ''"
    rows = f"(SELECT * FROM rejects WHERE {condition(selection.where)} AND NOT ({nameless}))"
    try:
        selection.table.arrow(f"SELECT key FROM {rows} LIMIT 0")
    except RequestError:
        # It uses a column of faces alone. Any other error comes again with the query of faces.
        return nothing
    return rows


def _rows(selection: Selection, query: str) -> Iterator[dict[str, Any]]:
    for batch in selection.table.batches(query, _BATCH_ROWS):
        yield from batch.to_pylist()


def new_list(
    table: Table, sources: Sequence[Source], reason: str, keys: Iterable[str]
) -> ForgetList:
    """Return a list of `sources` for a table, not stored yet, with the table's own salt.

    Raises `RequestError` if the reason, which is stored, has one of the images' `keys`.
    """
    _check_reason(reason, keys)
    salt = next((each.salt for each in Forgotten.read(table.store).lists), None)
    return ForgetList.of(sources, reason, salt)


def lists_of(store: Store, reason: str) -> list[ForgetList]:
    """Return lists, not stored yet, with all images that are forgotten in the table at `store`.

    Raises `RequestError` if there are none.
    """
    entries: dict[bytes, frozenset[str]] = {}
    for each in Forgotten.read(store).lists:
        entries[each.salt] = entries.get(each.salt, frozenset()) | each.entries
    if not entries:
        raise RequestError(f"nothing is forgotten in the table '{store.root}'")
    return [
        replace(ForgetList.of((), reason, salt), entries=listed) for salt, listed in entries.items()
    ]


def _check_reason(reason: str, keys: Iterable[str]) -> None:
    text = reason.lower()
    for key in keys:
        name = PurePosixPath(key).stem.lower()
        is_name = len(name) >= _SHORTEST_NAME and any(map(str.isalpha, name))
        if is_name and name in text:
            raise RequestError(
                f"--reason is kept in the table, so it must not name an image ('{name}')"
            )
