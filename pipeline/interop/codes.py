"""Codes by name, whatever files they are in, and reading the one code of a file."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.interop.pickled_codes import STYLE_DIM, Codes
from pipeline.storage.listing import Entry
from pipeline.storage.readers.npy import read_array

ENTRY = "w.npy"  # name of the codes in .npz files of NVIDIA's projector and generator
# Limits against zip bombs; 18 equal rows compress to a twentieth.
_MAX_RATIO, _FREE_BYTES = 64, 64 << 20


@dataclass(frozen=True)
class Lineage:
    """Faces that codes were refined from: image ids of the table at `uri`, "" if unknown."""

    uri: str
    image_ids: Mapping[str, str]  # name of the code -> image id
    unmatched: int = 0  # codes whose name matches no face, or more than one

    @property
    def digest(self) -> str:
        """SHA-256 of all matches."""
        lines = "\n".join(f"{name}\0{image}" for name, image in sorted(self.image_ids.items()))
        return hashlib.sha256(lines.encode(errors="replace")).hexdigest()


class CodeFiles(ABC):
    """Codes by name; `digest` changes when a code does, as far as the storage reports it."""

    uri: str
    digest: str
    names: Iterable[str]
    has_steps = False  # True if codes of every step are stored; otherwise their number is unknown
    origin: Lineage | None = None  # what the files say of it

    @abstractmethod
    def read(self, name: str) -> Codes:
        """Return codes float32 [steps, n_styles, 512]; one step if the steps are not stored.

        Raises `InputError` for a damaged code, NaN and infinity.
        """

    def uri_of(self, name: str) -> str:  # noqa: ARG002 - most have one file
        """Return the URI of the file with the code."""
        return self.uri


def digest_of(entries: Iterable[Entry]) -> str:
    """Return a digest that changes with the name, size or etag of any of the files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.etag}\n".encode(errors="replace"))
    return digest.hexdigest()


def read_code(content: bytes, source: str) -> Codes:
    """Read the one code of a `.npy`, `.pt` or `.npz` file, [1, n_styles, 512]; W has one row.

    Accepts [n, 512], [1, n, 512] and [512], of any float type. Never executes code from the file.
    Raises `InputError` in one line.
    """
    with damage_reported(source, "a code"):
        array = _array(content, source)
        code = np.asarray(array, np.float32) if array.dtype.kind == "f" else None
    if code is None:
        raise InputError(f"{source}: has values of type {array.dtype}, expected floats")
    code = code.reshape(1, 1, -1) if code.ndim == 1 else code
    code = code[None] if code.ndim == 2 else code
    if code.ndim != 3 or code.shape[0] != 1 or code.shape[2] != STYLE_DIM or not code.shape[1]:
        raise InputError(
            f"{source}: has shape {list(array.shape)}, expected one code [n_styles, {STYLE_DIM}]; "
            "import a file of many codes alone, as --from"
        )
    if not np.isfinite(code).all():
        raise InputError(f"{source}: has NaN or infinity")
    return code


def _array(content: bytes, source: str) -> Any:
    file = io.BytesIO(content)
    if source.endswith(".npy"):
        return read_array(content)
    if source.endswith(".npz"):
        with open_entry(file, source) as entry:
            return read_array(entry.read())
    from pipeline.models.checkpoint import refuse_bomb  # imports PyTorch, which is slow

    refuse_bomb(file, source)
    return load_tensor(file, source).float().numpy()


@contextmanager
def damage_reported(source: str, what: str) -> Iterator[None]:
    """Turn an error of numpy, zipfile or torch, of any type, into an `InputError` in one line."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # its text recommends to load the file unsafely
        raise InputError(f"{source}: not {what}, or damaged (not a file of one tensor)") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source}: not {what}, or damaged ({reason})") from error


@contextmanager
def open_entry(file: Path | IO[bytes], source: str) -> Iterator[IO[bytes]]:
    """Open the array `w` of an `.npz`. Raises `InputError` without one and for zip bombs."""
    with zipfile.ZipFile(file) as archive:
        if ENTRY not in archive.namelist():
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:5])
            raise InputError(f"{source}: has no array 'w' (found {names or 'nothing'})")
        info = archive.getinfo(ENTRY)
        if info.file_size > _MAX_RATIO * info.compress_size + _FREE_BYTES:
            raise InputError(
                f"{source}: refused, {info.compress_size} bytes unpack to {info.file_size}: too "
                "much for codes"
            )
        with archive.open(info) as entry:
            yield entry


def load_tensor(file: Path | IO[bytes], source: str, *, mmap: bool = False) -> Any:
    """Load the float tensor of a `.pt` file. Raises `InputError` for anything else in it."""
    import torch  # slow to import, not needed for numpy's files

    tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{source}: has a {type(tensor).__name__}, expected one tensor of codes")
    if not tensor.is_floating_point():
        raise InputError(f"{source}: has values of type {tensor.dtype}, expected floats")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{source}: a tensor {list(tensor.shape)} is larger than its stored values"
        )
    return tensor.detach()
