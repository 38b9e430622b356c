"""Many codes in one array: e4e's `latents.pt`, InterFaceGAN's `.npy`, NVIDIA's `npz['w']`.

The array is [n, n_styles, 512]. Names come from a list with one per line, or are the row numbers.
Codes are read one at a time and written in batches: memory does not grow with their number.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np

from pipeline.errors import ConfigError, InputError
from pipeline.interop.codes import ENTRY, CodeFiles, damage_reported, load_tensor, open_entry
from pipeline.interop.exporting import NamedSelection
from pipeline.interop.pickled_codes import STYLE_DIM, Codes
from pipeline.storage import Store, file_place, is_local
from pipeline.storage.readers.npy import ArrayHeader, read_header
from pipeline.storage.seekable import open_seekable
from pipeline.storage.uris import storage_errors

STACK_SUFFIXES = (".npy", ".npz", ".pt", ".pth")
NAMES_SUFFIX = ".names.txt"
_MAX_IN_MEMORY = 2 << 30  # for files of torch before 1.6, which cannot be read in parts
_BLOCK = 8 << 20
_MIN_DIGITS = 6


class _ArrayFile:
    """Rows of a `.npy` file [n, n_styles, 512] or [n, 512], read one at a time."""

    def __init__(self, path: Path, source: str) -> None:
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        header = read_header(cast(IO[bytes], self._file))
        _check_numbers(header, path.stat().st_size - self._file.tell(), source)
        self.shape, self._kind, self._start = header.shape, header.dtype, self._file.tell()

    def row(self, index: int) -> Codes:
        """Return a code, float32 [n_styles, 512] or [512]; `EOFError` if the file was truncated."""
        size = int(np.prod(self.shape[1:])) * self._kind.itemsize
        content = os.pread(self._file.fileno(), size, self._start + index * size)
        if len(content) < size:
            raise EOFError("it ends before its last code")
        return np.frombuffer(content, self._kind).reshape(self.shape[1:]).astype(np.float32)


class _TensorFile:
    """Rows of the one tensor in a `.pt` file, memory-mapped if its layout allows."""

    def __init__(self, path: Path, source: str) -> None:
        self._tensor = _mapped_tensor(path, source)
        self.shape = tuple(self._tensor.shape)

    def row(self, index: int) -> Codes:
        """Return a code, float32 [n_styles, 512] or [512]."""
        code: Codes = self._tensor[index].float().numpy()
        return code


class StackedCodes(CodeFiles):
    """Codes of one file by name, each checked when it is read."""

    def __init__(
        self, uri: str, rows: _ArrayFile | _TensorFile, names: Sequence[str], digest: str
    ) -> None:
        self.uri, self._rows = uri, rows
        self.names = self._index = {name: index for index, name in enumerate(names)}
        listed = hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()
        self.digest = hashlib.sha256(f"{digest}\n{listed}".encode()).hexdigest()

    def read(self, name: str) -> Codes:
        """Read a code [1, n_styles, 512]. Raises `InputError` for NaN and infinity."""
        try:
            code = self._rows.row(self._index[name])
        except (EOFError, OSError) as error:
            raise InputError(f"{self.uri}: cannot read code '{name}': {error}") from error
        if not np.isfinite(code).all():
            raise InputError(f"{self.uri}: code '{name}' has NaN or infinity")
        return code.reshape(1, -1, STYLE_DIM)


def open_stack(uri: str, names: str | None = None) -> StackedCodes | None:
    """Open the codes of the file at `uri`, named by the list at `names`; None for one code.

    Without a list, the names are numbers from 000000, and a two-dimensional array is one code; with
    a list, [n, 512] are n codes of W. Remote files are copied to the local disk first. Never
    executes code from the file. Raises `InputError` in one line.
    """
    listed = read_names(names) if names else None
    path, digest = _local_copy(uri)
    with damage_reported(uri, "codes"):
        rows = _open_rows(path, uri)
    if listed is None and (len(rows.shape) < 3 or rows.shape[0] == 1):
        if not uri.endswith(".npz"):
            return None
        listed = [PurePosixPath(uri).stem]
    _check_shape(rows.shape, listed, uri, names)
    return StackedCodes(uri, rows, listed or numbered(rows.shape[0]), digest)


def numbered(count: int) -> list[str]:
    """Return `count` numbers of equal length as names, which sort in the order of the rows."""
    digits = max(_MIN_DIGITS, len(str(count - 1)))
    return [f"{index:0{digits}d}" for index in range(count)]


def read_names(uri: str) -> list[str]:
    """Read a list of names, UTF-8. Raises `InputError` for empty and duplicate lines."""
    store, name = file_place(uri)
    if not store.exists(name):
        raise InputError(f"--names: '{uri}' does not exist")
    try:
        lines = store.get(name).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"--names '{uri}' is not UTF-8 text ({error.reason})") from error
    names = [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    line_of: dict[str, int] = {}
    for number, entry in enumerate(names, start=1):
        if not entry:
            raise InputError(f"--names '{uri}': line {number} is empty, but must name a code")
        if entry in line_of:
            raise InputError(
                f"--names '{uri}': '{entry}' is in lines {line_of[entry]} and {number}"
            )
        line_of[entry] = number
    return names


def _check_shape(
    shape: tuple[int, ...], names: Sequence[str] | None, uri: str, listed_in: str | None
) -> None:
    if len(shape) not in (2, 3) or shape[-1] != STYLE_DIM or 0 in shape:
        raise InputError(f"{uri}: has shape {list(shape)}, expected [n, n_styles, {STYLE_DIM}]")
    if names is not None and len(names) != shape[0]:
        raise InputError(
            f"{uri}: has {shape[0]} codes, but '{listed_in}' has {len(names)} names: give one "
            "line per code, in the order of the file"
        )


def _check_numbers(header: ArrayHeader, size: int, source: str) -> None:
    if header.dtype.kind != "f":
        raise InputError(f"{source}: has values of type {header.dtype}, expected floats")
    if header.is_fortran and len(header.shape) > 1:
        raise InputError(
            f"{source}: is in Fortran order; save numpy.ascontiguousarray of the array instead"
        )
    claimed = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if claimed != size:
        raise InputError(
            f"{source}: damaged ({size} bytes for an array {list(header.shape)} of {header.dtype})"
        )


def _local_copy(uri: str) -> tuple[Path, str]:
    """Return a local file with the content of `uri`, and its SHA-256."""
    if is_local(uri):
        path = Path(Store(uri).path())
        with storage_errors(f"read '{uri}'"), path.open("rb") as file:
            return path, hashlib.file_digest(file, "sha256").hexdigest()
    folder = _temporary_folder()
    copy, digest = folder / PurePosixPath(uri).name, hashlib.sha256()
    with (
        storage_errors(f"read '{uri}'"),
        open_seekable(uri, _BLOCK) as source,
        copy.open("wb") as sink,
    ):
        while block := source.read(_BLOCK):
            digest.update(block)
            sink.write(block)
    return copy, digest.hexdigest()


def _temporary_folder() -> Path:
    """Create a folder that is deleted when this process ends; open arrays read from it."""
    folder = Path(tempfile.mkdtemp(prefix="restyle-codes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _open_rows(path: Path, source: str) -> _ArrayFile | _TensorFile:
    if source.endswith(".npz"):
        return _ArrayFile(_unpacked(path, source), source)
    if source.endswith(".npy"):
        return _ArrayFile(path, source)
    return _TensorFile(path, source)


def _unpacked(path: Path, source: str) -> Path:
    """Extract the codes of an `.npz` to a temporary file."""
    with open_entry(path, source) as entry:
        copy = _temporary_folder() / ENTRY
        with copy.open("wb") as sink:
            shutil.copyfileobj(entry, sink, _BLOCK)
    return copy


def _mapped_tensor(path: Path, source: str) -> Any:
    """Load the float tensor of a `.pt` file, memory-mapped if its layout allows."""
    from pipeline.models.checkpoint import refuse_bomb  # imports PyTorch, which is slow

    with path.open("rb") as file:
        refuse_bomb(file, source)
        in_parts = zipfile.is_zipfile(file)
    if not in_parts and path.stat().st_size > _MAX_IN_MEMORY:
        raise InputError(
            f"{source}: {path.stat().st_size} bytes in torch's old format, too large to read; "
            "save it again with a newer torch, or as .npy"
        )
    return load_tensor(path, source, mmap=in_parts)


def export_stacked(selection: NamedSelection, uri: str) -> tuple[int, str]:
    """Write the codes as one array, float32 [n, n_styles, 512], and a list of their names.

    The suffix of `uri` decides the format: `.npy` and `.pt` are the array, `.npz` has it as `w`.
    `<uri without suffix>.names.txt` has one name per row. Returns the number of codes and the
    list's URI. The array is written to the local disk first, so that memory does not grow with it.
    """
    count = selection.require_rows()
    n_styles = selection.table.spec.columns.n_styles
    store, name = file_place(uri)
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    with tempfile.TemporaryDirectory(prefix="restyle-codes-") as temporary:
        array, names = Path(temporary) / "codes.npy", Path(temporary) / "names"
        _write_rows(selection, array, names, (count, n_styles, STYLE_DIM))
        # The array last: when it exists, its list exists too.
        store.put(f"{stem}{NAMES_SUFFIX}", names)
        store.put(name, _converted(array, suffix))
    return count, store.uri(f"{stem}{NAMES_SUFFIX}")


def _write_rows(
    selection: NamedSelection, array: Path, names: Path, shape: tuple[int, int, int]
) -> None:
    written = 0
    with array.open("wb") as codes, names.open("w", encoding="utf-8", newline="\n") as listed:
        header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(codes, header)
        for row in selection.named_rows("w_plus"):
            if "\n" in row["name"] or "\r" in row["name"]:
                raise ConfigError(
                    f"the name of {row['image_id']!r} has a line break, which is not possible in a "
                    "list of names: export single codes (--as codes), or exclude it with --where"
                )
            codes.write(np.ascontiguousarray(row["w_plus"], "<f4").tobytes())
            listed.write(f"{row['name']}\n")
            written += 1
    if written != shape[0]:
        raise ConfigError(
            f"the table changed during the export, from {shape[0]} to {written} codes: run again"
        )


def _converted(array: Path, suffix: str) -> Path:
    """Convert the `.npy` file `array` to the format of `suffix`."""
    if suffix == ".npy":
        return array
    converted = array.with_name(f"codes{suffix}")
    if suffix == ".npz":
        with zipfile.ZipFile(converted, "w", allowZip64=True) as archive:
            archive.write(array, ENTRY)
        return converted
    import torch  # slow to import, not needed for numpy files

    mapped = np.lib.format.open_memmap(array, mode="r+")
    torch.save(torch.from_numpy(mapped), converted)
    return converted
