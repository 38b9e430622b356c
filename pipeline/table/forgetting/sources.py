"""Choose the images to forget: by a condition on rows, or by the list of another table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.errors import RequestError
from pipeline.storage import Store
from pipeline.table.forgetting.forgotten import FORGOTTEN, ForgetList, Forgotten, Source
from pipeline.table.reader import Table
from pipeline.table.selection import Selection
from pipeline.table.statements import condition

_NAMES = "source_uri, source_sha256, face_index, key"
_BATCH_ROWS = 1024
_SHORTEST_NAME = 4  # of a key, without extension, that a reason must not repeat


def choose_sources(selection: Selection) -> tuple[list[Source], set[str]]:
    """Return the images that a selection means, and their keys.

    The condition chooses faces and, if it uses no column that rejects lack, rejects too, unless it
    has an order or a limit. If it chooses all faces that the table has of an image, the whole image
    is meant, otherwise single faces of it.
    """
    chosen = (
        f"SELECT {_NAMES}, 1 AS is_face FROM {selection.source} "
        f"UNION ALL SELECT {_NAMES}, 0 AS is_face FROM {_rejected(selection)}"
    )
    stored = (
        "SELECT source_uri, count(*) AS total FROM latents SEMI JOIN chosen USING (source_uri) "
        "GROUP BY source_uri"
    )
    query = (
        f"WITH chosen AS MATERIALIZED ({chosen}), stored AS ({stored}) "
        "SELECT source_uri, max(source_sha256) AS sha256, list(key) AS keys, "
        "list(face_index) AS faces, sum(is_face) >= coalesce(max(total), 0) AS has_all "
        "FROM chosen LEFT JOIN stored USING (source_uri) GROUP BY source_uri"
    )
    sources: list[Source] = []
    keys: set[str] = set()
    for batch in selection.table.batches(query, _BATCH_ROWS):
        for row in batch.to_pylist():
            # A reject without a face is one of the whole image.
            is_whole = row["has_all"] or None in row["faces"]
            faces = {None} if is_whole else set(row["faces"])
            sources += [Source(row["sha256"] or "", row["source_uri"], face) for face in faces]
            keys |= set(row["keys"])
    return sources, keys


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
