"""Codes of Parquet files and tar archives by name, to be imported; see `code_files.CodeFiles`.

Rows of an export carry the image id of their face, and the export the URI of its table: the codes'
`Origin`. A name is the column `name`, or `<key>#<face>`, or the image id: the first that is unique.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.interop.file_names import from_sample_key
from pipeline.interop.parquet_codes import CodeFile
from pipeline.interop.parquet_files import EXPORT
from pipeline.interop.pickled_codes import Codes
from pipeline.interop.single_code import read_code
from pipeline.storage import Store, one_line
from pipeline.storage.listing import Entry
from pipeline.storage.readers.tar import DAMAGE, open_tar
from pipeline.storage.uris import storage_errors

_THREADS = 8
_MAX_FACTS = 16 << 20  # bytes of the JSON of one face
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.(npy|pth|json)", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """Faces that codes came from: the URI of their table, "" if unknown, and image ids by name."""

    table: str
    image_ids: Mapping[str, str]


def _unique_names(
    where: str,
    image_ids: Sequence[str] | None,  # one value per row, None without this column; as the others
    names: Sequence[str] | None,
    keys: Sequence[str] | None,
    faces: Sequence[int] | None,
) -> list[str]:
    """Return the name of each row. Raises `InputError` without a column of unique names."""
    numbers = [0] * len(keys or ()) if faces is None else faces
    numbered = keys and [f"{key}#{face or 0}" for key, face in zip(keys, numbers, strict=True)]
    candidates = [list(column) for column in (names, numbered, image_ids) if column is not None]
    for chosen in candidates:
        if len(set(chosen)) == len(chosen) and None not in chosen:
            return chosen
    if not candidates:
        raise InputError(f"'{where}' has no column image_id, key or name, which name the codes")
    raise InputError(
        f"'{where}' has two rows of the same face: give each another text in a column `name`"
    )


class TarRows:
    """Codes of WebDataset shards: `<key>.npy` or `.pth`, and what `<key>.json` says of the face.

    Names and the places of the codes in the archives are in memory.
    """

    has_steps = False

    def __init__(self, uri: str, folder: str, entries: Sequence[Entry]) -> None:
        """Read the archives once. Raises `InputError` for damage, and where no codes are."""
        self.uri, self._store = uri, Store(folder)
        self.digest = digest_of(entries)
        samples: dict[str, _Sample] = {}
        for entry in entries:
            _read_samples(self._store, entry.name, samples)
        samples = {key: sample for key, sample in samples.items() if sample.code}
        if not samples:
            raise InputError(f"'{uri}' has no codes: expected .npy or .pth files in its archives")
        facts = [sample.facts for sample in samples.values()]
        image_ids = _every(facts, "image_id", str)
        names = [from_sample_key(key) for key in samples]
        keys = _every(facts, "key", str)
        if keys is not None:
            names = _unique_names(uri, image_ids, None, keys, _every(facts, "face_index", int))
        self._codes = {
            name: sample.code for name, sample in zip(names, samples.values(), strict=True)
        }
        self.origin = _origin(names, image_ids, [fact.get("table") for fact in facts])

    @property
    def names(self) -> Iterable[str]:
        """Names in the order of the archives."""
        return self._codes

    def read(self, name: str) -> Codes:
        """Read a code [1, n_styles, 512]. Raises `InputError` for a damaged one."""
        archive, member, start, size = self._codes[name]
        content = self._store.get(archive, start, start + size)
        return read_code(content, f"{self._store.uri(archive)}/{member}")

    def uri_of(self, name: str) -> str:
        """Return the URI of the archive with the code."""
        return self._store.uri(self._codes[name].archive)


class _Place(NamedTuple):
    """Place of a code: its archive, its name there, and its bytes."""

    archive: str
    member: str
    start: int
    size: int


@dataclass
class _Sample:
    """Code and JSON of one key."""

    code: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def _read_samples(store: Store, archive: str, samples: dict[str, _Sample]) -> None:
    """Add the samples of an archive to `samples`, by key."""
    uri = store.uri(archive)
    try:
        with storage_errors(f"read '{uri}'"), open_tar(uri) as members:
            for member in members:
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                sample = samples.setdefault(match[1], _Sample())
                if match[2] == "json":
                    sample.facts = _facts(members, member, uri)
                elif sample.code:
                    raise InputError(f"'{uri}' has a second code of '{match[1]}'")
                else:
                    sample.code = _Place(archive, member.name, member.offset_data, member.size)
    except DAMAGE as error:
        raise InputError(f"'{uri}' is damaged: {one_line(error)}") from error


def _facts(members: tarfile.TarFile, member: tarfile.TarInfo, uri: str) -> Mapping[str, Any]:
    """Return a sample's JSON object; {} for other JSON."""
    if member.size > _MAX_FACTS:
        raise InputError(f"'{uri}/{member.name}' has {member.size} bytes, too many for one face")
    file = members.extractfile(member)
    try:
        facts = json.loads(file.read()) if file else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{uri}/{member.name}' is not JSON: {one_line(error)}") from error
    return facts if isinstance(facts, dict) else {}


def _every(facts: Sequence[Mapping[str, Any]], name: str, kind: type) -> list[Any] | None:
    """Return a value of every sample, or None if one has none of this type."""
    values = [fact.get(name) for fact in facts]
    return values if all(type(value) is kind for value in values) else None


def _origin(
    names: Sequence[str], image_ids: Sequence[str] | None, tables: Sequence[object]
) -> Origin | None:
    """Return the faces of `names` in their table; None where codes do not name their face."""
    if image_ids is None:
        return None
    uris = {table for table in tables if isinstance(table, str)}
    uri = uris.pop() if len(uris) == 1 else ""
    pairs = zip(names, image_ids, strict=True)
    return Origin(uri, {name: image_id for name, image_id in pairs if image_id})


def digest_of(entries: Iterable[Entry]) -> str:
    """Return a digest that changes with the name, size or etag of any of the files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.etag}\n".encode(errors="replace"))
    return digest.hexdigest()


class ParquetRows:
    """Codes of Parquet files: of an export of this library, or of files that have its columns.

    Only names are in memory. Codes that are not stored plain are copied to the local disk first,
    because they are read in the order of their names.
    """

    has_steps = False

    def __init__(self, uri: str, folder: str, entries: Sequence[Entry]) -> None:
        """Read the names of all rows. Raises `InputError` for files without codes or names."""
        self.uri, store = uri, Store(folder)
        self.digest = digest_of(entries)
        with ThreadPoolExecutor(_THREADS) as pool:
            self._files = list(pool.map(lambda entry: CodeFile(store, entry.name), entries))
        self._starts = np.concatenate([[0], np.cumsum([file.rows for file in self._files])])
        image_ids = self._column("image_id")
        columns = [self._column(name) for name in ("name", "key", "face_index")]
        names = _unique_names(uri, image_ids, *columns)
        self._index = {name: index for index, name in enumerate(names)}
        tables = [_plan_of(file).get("table") for file in self._files]
        self.origin = _origin(names, image_ids, tables)

    @property
    def names(self) -> Iterable[str]:
        """Names in the order of the rows."""
        return self._index

    def read(self, name: str) -> Codes:
        """Read a code [1, n_styles, 512]. Raises `InputError` for NaN and infinity."""
        row = self._index[name]
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, inside = self._files[index], row - int(self._starts[index])
        code: Codes
        if file.plain is not None:
            code = file.codes(np.array([inside]))[0]
        else:
            code = self._spools[index].read(inside)
        if not np.isfinite(code).all():
            raise InputError(f"'{file.uri}': code '{name}' has NaN or infinity")
        return code[None]

    def uri_of(self, name: str) -> str:
        """Return the URI of the file with the code."""
        index = int(np.searchsorted(self._starts, self._index[name], side="right")) - 1
        return self._files[index].uri

    def _column(self, name: str) -> list[Any] | None:
        if any(name not in file.schema.names for file in self._files):
            return None
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(lambda file: file.column(name).to_pylist(), self._files)
            return [value for values in read for value in values]

    @cached_property
    def _spools(self) -> dict[int, _Spool]:
        return {index: _Spool(file) for index, file in enumerate(self._files) if file.plain is None}


class _Spool:
    """Copy of a file's codes on the local disk, made at the first read."""

    def __init__(self, file: CodeFile) -> None:
        self._file = file

    def read(self, row: int) -> NDArray[np.float32]:
        """Return a code, float32 [n_styles, 512]."""
        copy, shape, kind = self._copy
        size = int(np.prod(shape)) * kind.itemsize
        content = os.pread(copy.fileno(), size, row * size)
        code: NDArray[np.float32] = np.frombuffer(content, kind).reshape(shape).astype(np.float32)
        return code

    @cached_property
    def _copy(self) -> tuple[Any, tuple[int, ...], np.dtype[Any]]:
        copy = tempfile.TemporaryFile(prefix="restyle-codes-")  # noqa: SIM115 - open while read
        weakref.finalize(self, copy.close)
        shapes = set()
        for codes in self._file.batches():
            shapes.add((codes.shape[1:], codes.dtype))
            copy.write(codes.tobytes())
        copy.flush()
        if len(shapes) != 1:
            listed = ", ".join(str(list(shape)) for shape, _ in sorted(shapes, key=str))
            raise InputError(f"'{self._file.uri}' has codes of several shapes: {listed}")
        shape, kind = shapes.pop()
        return copy, shape, kind


def _plan_of(file: CodeFile) -> Mapping[str, Any]:
    plan = file.metadata.get(EXPORT)
    return plan if isinstance(plan, dict) else {}
