"""List of forgotten images, `_forgotten/*.json`, and its effect on the rows of a part.

`erase` writes the list and removes rows that are stored; `TableWriter` applies it to every
part that a later run writes, so that a forgotten face does not come back.

The list must not name a person. An entry is a keyed hash (BLAKE2b, 128 bits): of the SHA-256 of the
image's bytes, which also finds copies under other names, or of its source URI, which also finds
another encoding under the same name. The key is random and is stored in the same file, so entries
of two tables cannot be compared. But anyone who can read the table can test a photo that they
have, or a name that they guess.

A forgotten image stays countable: it becomes a reject with the reason `forgotten`, without hash and
URI, whose key is a number. So samples in = samples out, and no count of a shard changes but those
of faces and rejects. Of an image with other faces, single faces can be forgotten: then the reject
has the key of the image, which the rows of the other faces have too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import RequestError, TableError
from pipeline.storage import Store
from pipeline.table.parts import REJECTS
from pipeline.table.schema import rejects_table
from pipeline.table.spec import read_json

FOLDER = "_forgotten/"
FORGOTTEN = "forgotten"  # the reject reason, and the beginning of keys
_VERSION = 1
_SALT_BYTES = 16
_HASH_BYTES = 16
KEPT, FACE, IMAGE = range(3)  # how much of a row's image is forgotten
_MATCHED = ("source_sha256", "source_uri", "face_index")
_NAMES = ["key", *_MATCHED]


@dataclass(frozen=True)
class Source:
    """Image to forget: the SHA-256 of its bytes ("" if unknown) and its URI.

    `face` is the `face_index` of the only face to forget; None: the whole image.
    """

    sha256: str
    uri: str
    face: int | None = None


@dataclass(frozen=True)
class ForgetList:
    """File of the list; `finished` once no file of the table has a row of its images."""

    name: str
    salt: bytes
    entries: frozenset[str]
    started: str  # ISO 8601, UTC
    reason: str = ""
    finished: str = ""
    removes: Mapping[str, int] = field(default_factory=dict)  # rows at the start: faces, rejects

    @classmethod
    def of(cls, sources: Iterable[Source], reason: str, salt: bytes | None = None) -> ForgetList:
        """Return the list of `sources`, which is not stored yet; the salt is random by default."""
        now, key = datetime.now(UTC), salt or secrets.token_bytes(_SALT_BYTES)
        entries = {
            entry if source.face is None else f"{entry}#{source.face}"
            for source in sources
            for entry in _entries(key, source.sha256, source.uri)
        }
        return cls(
            name=f"{FOLDER}{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json",
            salt=key,
            entries=frozenset(entries),
            started=now.isoformat(timespec="seconds"),
            reason=reason,
        )

    @classmethod
    def read(cls, store: Store, name: str) -> ForgetList:
        """Read a file of the list; `TableError` if it is damaged."""
        document = read_json(store, name)
        try:
            if document["version"] != _VERSION:
                raise ValueError(f"its version is {document['version']}")  # noqa: TRY301
            return cls(
                name=name,
                salt=bytes.fromhex(document["salt"]),
                entries=frozenset(map(str, document["entries"])),
                started=str(document["started"]),
                reason=str(document["reason"]),
                finished=str(document["finished"]),
                removes={key: int(count) for key, count in document["removes"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"'{store.uri(name)}' is not a list of forgotten images ({error}): restore it from "
                "a copy; deleting it would let its images come back"
            ) from error

    def write(self, store: Store) -> None:
        """Write the file, replacing it."""
        document = {
            "version": _VERSION,
            "started": self.started,
            "finished": self.finished,
            "reason": self.reason,
            "removes": dict(self.removes),
            "salt": self.salt.hex(),
            "entries": sorted(self.entries),
        }
        store.put(self.name, (json.dumps(document, indent=1) + "\n").encode())

    def finish(self, store: Store) -> None:
        """Write that nothing of these images is left."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        replace(self, finished=now).write(store)


class Forgotten:
    """Images that must not be in a table: all files of its list, and of lists that it inherits."""

    def __init__(self, lists: Sequence[ForgetList] = ()) -> None:
        self.lists = tuple(lists)
        # By salt: hash of an image -> numbers of its forgotten faces, None for all of it.
        self._faces: dict[bytes, dict[str, set[int | None]]] = {}
        for each in self.lists:
            faces = self._faces.setdefault(each.salt, {})
            for entry in each.entries:
                name, _, number = entry.partition("#")
                faces.setdefault(name, set()).add(int(number) if number else None)

    @classmethod
    def read(cls, store: Store) -> Forgotten:
        """Read the list of a table; empty for most tables, at the cost of one listing."""
        names = [name for name in store.names(FOLDER) if name.endswith(".json")]
        return cls([ForgetList.read(store, name) for name in names])

    def __add__(self, other: Forgotten) -> Forgotten:
        """Return the images of both."""
        return Forgotten((*self.lists, *other.lists))

    def __bool__(self) -> bool:
        return any(self._faces.values())

    def has(self, other: ForgetList) -> bool:
        """Return whether all images of a list are forgotten already."""
        own = [each.entries for each in self.lists if each.salt == other.salt]
        return other.entries <= frozenset().union(*own)

    @property
    def unfinished(self) -> tuple[ForgetList, ...]:
        """Files of the list whose images may still have rows."""
        return tuple(each for each in self.lists if not each.finished)

    def levels(self, rows: pa.Table) -> list[int]:
        """Return KEPT, FACE or IMAGE for each row; `rows` has the `deciding_columns`.

        A reject that says that its face is forgotten is KEPT, unless its whole image is forgotten.
        """
        columns = [rows[name].to_pylist() for name in _MATCHED]
        has_reason = "reason" in rows.column_names
        reasons = rows["reason"].to_pylist() if has_reason else [""] * rows.num_rows
        levels, cache = [], dict[tuple[str, str], set[int | None]]()
        for sha256, uri, face, reason in zip(*columns, reasons, strict=True):
            image = sha256 or "", uri or ""
            if image not in cache:
                cache[image] = self._forgotten_faces(*image)
            if None in cache[image]:
                levels.append(IMAGE)
            else:
                levels.append(FACE if face in cache[image] and reason != FORGOTTEN else KEPT)
        return levels

    def _forgotten_faces(self, sha256: str, uri: str) -> set[int | None]:
        """Return the numbers of the forgotten faces of an image; None among them: all of it."""
        forgotten: set[int | None] = set()
        for salt, faces in self._faces.items():
            for entry in _entries(salt, sha256, uri):
                forgotten |= faces.get(entry, set())
        return forgotten

    def erase(
        self, latents: pa.Table, rejects: pa.Table, *, part: int, samples: int
    ) -> tuple[pa.Table, pa.Table]:
        """Return the rows of a part without forgotten images; both tables as they are if none is.

        An image becomes a reject without a name, a face of an image with other faces a reject of
        its own. Applying it again, also to the results of an interrupted attempt (`rejects` erased,
        `latents` not), gives the same rows. `samples` is the number of samples of the part.
        """
        of_faces, of_rejects = self.levels(latents), self.levels(rejects)
        if not any(of_faces) and not any(of_rejects):
            return latents, rejects
        shard_id = (latents if latents.num_rows else rejects)["shard"][0].as_py()
        kept = latents.filter(pa.array([level == KEPT for level in of_faces], pa.bool_()))
        names = latents.select(_NAMES).to_pylist()
        faces = [row for row, level in zip(names, of_faces, strict=True) if level == FACE]
        others = []
        for row, level in zip(
            rejects.drop_columns(["image_id", "shard"]).to_pylist(), of_rejects, strict=True
        ):
            if level == FACE or (level == KEPT and row["reason"] == FORGOTTEN):
                faces.append(row)
            elif level == KEPT:
                others.append(row)
        others += _faces_of_others(row for row in faces if row["face_index"] is not None)
        keys = {*kept["key"].to_pylist(), *(row["key"] for row in others)}
        others += _nameless(part, samples - len(keys), keys)
        return kept, rejects_table(others, shard_id)


def deciding_columns(kind: str) -> tuple[str, ...]:
    """Return the columns of latents or rejects that say whether an image is forgotten."""
    return (*_MATCHED, "reason") if kind == REJECTS else _MATCHED


def check_finished(store: Store, forgotten: Forgotten | None = None) -> None:
    """Raise `RequestError` if a forget of the table at `store` has not ended.

    `forgotten` is the table's list, if it has been read.
    """
    if (Forgotten.read(store) if forgotten is None else forgotten).unfinished:
        raise RequestError(
            f"images are being erased from the table '{store.root}', or that was interrupted: run "
            f"`restyle forget --table {shlex.quote(store.root)}`, which does the rest, then this "
            "command again"
        )


def _faces_of_others(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rejects for single forgotten faces: one per face, sorted."""
    faces = {(row["key"], row["face_index"]): row for row in rows}
    return [_reject({name: faces[face][name] for name in _NAMES}) for face in sorted(faces)]


def _nameless(part: int, count: int, taken: Container[str]) -> list[dict[str, Any]]:
    """Return the rejects of `count` forgotten images, whose keys are not among `taken`."""
    numbered = (f"{FORGOTTEN}:{part:05d}-{number}" for number in itertools.count())
    keys = itertools.islice((key for key in numbered if key not in taken), max(0, count))
    nothing = dict.fromkeys(_NAMES) | {"source_uri": "", "source_sha256": ""}
    return [_reject(nothing | {"key": key}) for key in keys]


def _reject(names: dict[str, Any]) -> dict[str, Any]:
    return names | {"reason": FORGOTTEN, "detail": ""}


def _entries(salt: bytes, sha256: str, uri: str) -> Iterator[str]:
    for kind, value in (("bytes", sha256), ("name", uri)):
        if value:
            text = f"{kind} {value}".encode()
            yield hashlib.blake2b(text, key=salt, digest_size=_HASH_BYTES).hexdigest()
