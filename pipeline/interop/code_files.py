"""Read W+ codes: a `latents.npy` dictionary, an array of many, one file per code, or an export."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from pipeline.errors import InputError, MissingError
from pipeline.interop.file_names import from_file_name
from pipeline.interop.named_rows import Origin, ParquetRows, TarRows, digest_of
from pipeline.interop.pickled_codes import Codes, read_latents
from pipeline.interop.single_code import read_code
from pipeline.interop.stacked import STACK_SUFFIXES, open_stack
from pipeline.storage import Store, canonical_uri
from pipeline.storage.file_types import is_hidden
from pipeline.storage.listing import Entry, file_entry, is_folder, walk
from pipeline.storage.readers.npy import read_header
from pipeline.storage.uris import filesystem, join
from pipeline.table.spec import SPEC_NAME

_FACE = re.compile(r"(.*)#(\d{1,6})", re.DOTALL)
_LISTED = 5


class FaceName(NamedTuple):
    """Parsed name of a code: `a/1.jpg#2` is face 2 of `a/1.jpg`."""

    key: str
    face_index: int
    name: str


class CodeFiles(Protocol):
    """Codes by name; `digest` changes when a code does, as far as the storage reports it."""

    uri: str
    digest: str

    @property
    def origin(self) -> Origin | None:
        """Faces that the codes came from, if the files say so."""
        ...

    @property
    def names(self) -> Iterable[str]:
        """Names of all codes."""
        ...

    @property
    def has_steps(self) -> bool:
        """True if codes of every step are stored; otherwise their number is unknown."""
        ...

    def read(self, name: str) -> Codes:
        """Return codes float32 [steps, n_styles, 512]; one step if the steps are not stored."""
        ...

    def uri_of(self, name: str) -> str:
        """Return the URI of the file with the code."""
        ...


def open_codes(uri: str, names: str | None = None) -> CodeFiles:
    """Open the codes at a path or URI.

    `names` is the URI of a list of names, one per line, for the codes of one array. Raises
    `InputError` when there are no codes.
    """
    root = canonical_uri(uri)
    fs, path = filesystem(root)
    try:
        if is_folder(fs, path, root):
            _refuse_names(names, f"'{root}' is a folder, whose file names are used")
            return _open_folder(root, list(walk(fs, path, root)))
        folder, _, name = root.rpartition("/")
        if not name.endswith((*STACK_SUFFIXES, *_MANY)):
            suffixes = (*STACK_SUFFIXES, *_MANY)
            raise InputError(
                f"'{root}' is not a file of codes: expected {', '.join(suffixes[:-1])} or "
                f"{suffixes[-1]}"
            )
        if name.endswith(tuple(_MANY)):
            _refuse_names(names, f"'{root}' has the names of its codes")
            return _MANY[PurePosixPath(name).suffix](root, folder, [file_entry(root)])
        if name.endswith(".npy") and _is_dictionary(Store(folder), name):
            _refuse_names(names, f"'{root}' is a dictionary that contains the names")
            return _Dictionary(root, Store(folder).get(name))
        return open_stack(root, names) or _Folder(folder, [file_entry(root)])
    except MissingError as error:
        raise InputError(f"'{root}' does not exist") from error


# Files of many named codes, by suffix.
_MANY: dict[str, type[ParquetRows] | type[TarRows]] = {".parquet": ParquetRows, ".tar": TarRows}


def _open_folder(root: str, entries: list[Entry]) -> CodeFiles:
    """Open a folder of files of one code each, or without such files one of Parquet files or tars.

    Raises `InputError` for a folder of none of these, and for a table.
    """
    chosen = [entry for entry in entries if not is_hidden(entry.name)]
    if any(entry.name == SPEC_NAME for entry in chosen):
        raise InputError(
            f"'{root}' is a table already: query it, refine it, or import what was exported from it"
        )
    if not any(entry.name.endswith(STACK_SUFFIXES) for entry in chosen):
        for suffix, kind in _MANY.items():
            if files := [entry for entry in chosen if entry.name.endswith(suffix)]:
                return kind(root, root, files)
    return _Folder(root, chosen)


def _refuse_names(names: str | None, why: str) -> None:
    if names:
        raise InputError(f"--names is only for one array of many codes: {why}")


def faces_of(names: Iterable[str]) -> list[tuple[str, list[FaceName]]]:
    """Group names by image, in the order of keys: (key, its faces).

    Raises `InputError` with the list when two names mean the same face.
    """
    by_key: dict[str, list[FaceName]] = defaultdict(list)
    for name in names:
        match = _FACE.fullmatch(name)
        face = FaceName(match[1], int(match[2]), name) if match else FaceName(name, 0, name)
        by_key[face.key].append(face)
    for faces in by_key.values():
        faces.sort(key=lambda face: face.face_index)
    duplicates = {
        key: [face.name for face in faces]
        for key, faces in by_key.items()
        if len({face.face_index for face in faces}) < len(faces)
    }
    if duplicates:
        raise InputError(f"several names mean the same face: {listed(duplicates)}; rename them")
    return sorted(by_key.items())


def listed(ambiguous: Mapping[str, Iterable[str]]) -> str:
    """Return the first entries as text: `'1' (a/1.jpg, b/1.jpg); ...`."""
    first = list(ambiguous.items())[:_LISTED]
    text = "; ".join(f"'{name}' ({', '.join(list(keys)[:4])})" for name, keys in first)
    return text + (f"; and {len(ambiguous) - len(first)} more" if len(ambiguous) > 5 else "")


class _Dictionary:
    """Codes of a `latents.npy`, all in memory."""

    origin: Origin | None = None

    def __init__(self, uri: str, content: bytes) -> None:
        self.uri, self.digest = uri, hashlib.sha256(content).hexdigest()
        self._codes = read_latents(content, uri)

    @property
    def names(self) -> Iterable[str]:
        return self._codes

    @property
    def has_steps(self) -> bool:
        return any(len(steps) > 1 for steps in self._codes.values())

    def read(self, name: str) -> Codes:
        return self._codes[name]

    def uri_of(self, name: str) -> str:  # noqa: ARG002 - one file has all
        return self.uri


class _Folder:
    """Codes of a folder with one file per code; only names are in memory."""

    has_steps = False
    origin: Origin | None = None

    def __init__(self, uri: str, entries: list[Entry]) -> None:
        self.uri, self._store = uri, Store(uri)
        chosen = [entry for entry in entries if entry.name.endswith(STACK_SUFFIXES)]
        if not chosen:
            suffixes = (*STACK_SUFFIXES, *_MANY)
            raise InputError(f"'{uri}' has no codes: expected {', '.join(suffixes)} files")
        self._files: dict[str, str] = {}
        self.digest = digest_of(chosen)
        for entry in chosen:
            name = from_file_name(str(PurePosixPath(entry.name).with_suffix("")))
            if name in self._files:
                pair = {name: (self._files[name], entry.name)}
                raise InputError(f"several files have the same code name: {listed(pair)}")
            self._files[name] = entry.name

    @property
    def names(self) -> Iterable[str]:
        return self._files

    def read(self, name: str) -> Codes:
        return read_code(self._store.get(self._files[name]), self.uri_of(name))

    def uri_of(self, name: str) -> str:
        return join(self.uri, self._files[name])


def _is_dictionary(store: Store, name: str) -> bool:
    """Return whether a `.npy` file contains an object, by its header."""
    try:
        with store.open(name) as file:
            return read_header(io.BytesIO(file.read(4096))).dtype.hasobject
    except ValueError as error:
        raise InputError(f"{store.uri(name)}: not a numpy file, or damaged ({error})") from error
