"""W+ codes in files: a `latents.npy` dictionary, one array of many codes, or a file a code."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.errors import InputError, StorageError
from pipeline.interop.file_names import from_file_name
from pipeline.interop.pickled_codes import STYLE_DIM, Codes, read_latents
from pipeline.interop.stacked import STACK_SUFFIXES, open_entry, open_stack
from pipeline.storage import Store, canonical_uri
from pipeline.storage.file_types import is_hidden
from pipeline.storage.listing import Entry, file_entry, is_folder, walk
from pipeline.storage.readers.npy import read_array, read_header
from pipeline.storage.uris import filesystem, join

_FACE = re.compile(r"(.*)#(\d{1,6})", re.DOTALL)
_LISTED = 5


class FaceName(NamedTuple):
    """What a code is called, taken apart: `a/1.jpg#2` is face 2 of `a/1.jpg`."""

    key: str
    face_index: int
    name: str


class CodeFiles(Protocol):
    """Codes by name; `digest` changes when any of them does, as far as the storage tells."""

    uri: str
    digest: str

    @property
    def names(self) -> Iterable[str]:
        """The names of all codes."""
        ...

    @property
    def has_steps(self) -> bool:
        """Whether the codes of steps are there; else nobody knows how many led to a code."""
        ...

    def read(self, name: str) -> Codes:
        """The code of each step, float32 [steps, n_styles, 512], or the one that there is."""
        ...

    def uri_of(self, name: str) -> str:
        """Where a code came from."""
        ...


def open_codes(uri: str, names: str | None = None) -> CodeFiles:
    """The codes at a path or URI; the list at `names` names those of one array, one a line.

    Raises `InputError` where there are none, in one line.
    """
    root = canonical_uri(uri)
    fs, path = filesystem(root)
    try:
        if is_folder(fs, path, root):
            _refuse_names(names, f"'{root}' is a folder, whose files have names")
            return _Folder(root, list(walk(fs, path, root)))
        folder, _, name = root.rpartition("/")
        if not name.endswith(STACK_SUFFIXES):
            raise InputError(
                f"'{root}' is no file of codes: these end in {', '.join(STACK_SUFFIXES[:-1])} or "
                f"{STACK_SUFFIXES[-1]}"
            )
        if name.endswith(".npy") and _is_dictionary(Store(folder), name):
            _refuse_names(names, f"'{root}' is a dictionary, which has the names of its codes")
            return _Dictionary(root, Store(folder).get(name))
        return open_stack(root, names) or _Folder(folder, [file_entry(root)])
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputError(f"'{root}' does not exist") from error
        raise


def _refuse_names(names: str | None, why: str) -> None:
    if names:
        raise InputError(f"--names is for an array of many codes in one file: {why}")


def faces_of(names: Iterable[str]) -> list[tuple[str, list[FaceName]]]:
    """Names by the image that they belong to, in the order of keys: (key, its faces).

    Raises `InputError` with the list where two names stand for one face.
    """
    found: dict[str, list[FaceName]] = defaultdict(list)
    for name in names:
        match = _FACE.fullmatch(name)
        face = FaceName(match[1], int(match[2]), name) if match else FaceName(name, 0, name)
        found[face.key].append(face)
    for faces in found.values():
        faces.sort(key=lambda face: face.face_index)
    twice = {
        key: [face.name for face in faces]
        for key, faces in found.items()
        if len({face.face_index for face in faces}) < len(faces)
    }
    if twice:
        raise InputError(f"names that stand for the same face: {listed(twice)}")
    return sorted(found.items())


def listed(ambiguous: Mapping[str, Iterable[str]]) -> str:
    """`'1' (a/1.jpg, b/1.jpg); ...` of the first few."""
    shown = list(ambiguous.items())[:_LISTED]
    text = "; ".join(f"'{name}' ({', '.join(list(what)[:4])})" for name, what in shown)
    return text + (f"; and {len(ambiguous) - len(shown)} more" if len(ambiguous) > 5 else "")


class _Dictionary:
    """A `latents.npy`: one object, held in memory."""

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

    def uri_of(self, name: str) -> str:  # noqa: ARG002 - one file holds all
        return self.uri


class _Folder:
    """A file a code; only names are held."""

    has_steps = False

    def __init__(self, uri: str, entries: list[Entry]) -> None:
        self.uri, self._store = uri, Store(uri)
        chosen = [e for e in entries if e.name.endswith(STACK_SUFFIXES) and not is_hidden(e.name)]
        if not chosen:
            raise InputError(
                f"'{uri}' holds no codes: looked for {', '.join(STACK_SUFFIXES)} files"
            )
        self._files: dict[str, str] = {}
        digest = hashlib.sha256()
        for entry in chosen:
            name = from_file_name(str(PurePosixPath(entry.name).with_suffix("")))
            if name in self._files:
                pair = {name: (self._files[name], entry.name)}
                raise InputError(f"files that stand for the same code: {listed(pair)}")
            self._files[name] = entry.name
            digest.update(f"{entry.name}\0{entry.size}\0{entry.etag}\n".encode(errors="replace"))
        self.digest = digest.hexdigest()

    @property
    def names(self) -> Iterable[str]:
        return self._files

    def read(self, name: str) -> Codes:
        return read_code(self._store.get(self._files[name]), self.uri_of(name))

    def uri_of(self, name: str) -> str:
        return join(self.uri, self._files[name])


def read_code(content: bytes, source: str) -> Codes:
    """The one code in a `.npy`, `.pt` or `.npz` file, [1, n_styles, 512]; a W code has one row.

    Accepts [n, 512], [1, n, 512] and [512], of any float type. Runs nothing of what is in the
    file. Raises `InputError` in one line.
    """
    try:
        array = _array(content, source)
        code = np.asarray(array, np.float32) if array.dtype.kind == "f" else None
    except pickle.UnpicklingError as error:  # whose text offers to run what the file asks for
        raise InputError(f"{source}: no code, or damaged (no file of one tensor)") from error
    except Exception as error:  # of a damaged file numpy and torch raise whatever comes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source}: no code, or damaged ({reason})") from error
    if code is None:
        raise InputError(f"{source}: holds {array.dtype}, expected floats")
    code = code.reshape(1, 1, -1) if code.ndim == 1 else code
    code = code[None] if code.ndim == 2 else code
    if code.ndim != 3 or code.shape[0] != 1 or code.shape[2] != STYLE_DIM or not code.shape[1]:
        raise InputError(
            f"{source}: has shape {list(array.shape)}, expected one code [n_styles, {STYLE_DIM}]; "
            "a file of many codes is imported by itself, as --from"
        )
    if not np.isfinite(code).all():
        raise InputError(f"{source}: holds numbers that are not finite")
    return code


def _array(content: bytes, source: str) -> Any:
    if source.endswith(".npy"):
        return read_array(content)
    if source.endswith(".npz"):
        with open_entry(io.BytesIO(content), source) as entry:
            return read_array(entry.read())
    import torch  # numpy's files need none of it

    from pipeline.models.checkpoint import refuse_bomb

    refuse_bomb(io.BytesIO(content), source)
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"holds a {type(found).__name__}, expected one tensor")
    if found.numel() * found.element_size() > found.untyped_storage().nbytes():
        raise ValueError(f"a tensor {list(found.shape)} claims more numbers than it holds")
    return found.detach().to(torch.float32 if found.is_floating_point() else None).numpy()


def _is_dictionary(store: Store, name: str) -> bool:
    """Whether a `.npy` file holds an object, by its header."""
    try:
        with store.open(name) as file:
            return read_header(io.BytesIO(file.read(4096))).dtype.hasobject
    except ValueError as error:
        raise InputError(f"{store.uri(name)}: no numpy file, or damaged ({error})") from error
