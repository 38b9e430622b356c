"""Many codes in one array: e4e's `latents.pt`, InterFaceGAN's `.npy`, NVIDIA's `npz['w']`.

The array is [n, n_styles, 512]. Such files name nothing: the names come from a list, one a line, or
are the numbers of the rows.
Codes are read one at a time, and written as the table is read: memory holds a few of them.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import pickle
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, cast

import numpy as np

from pipeline.errors import ConfigError, InputError
from pipeline.interop.exporting import Selection, refuse_nothing
from pipeline.interop.pickled_codes import STYLE_DIM, Codes
from pipeline.storage import Store, canonical_uri, is_local
from pipeline.storage.readers.npy import ArrayHeader, read_header
from pipeline.storage.seekable import open_seekable
from pipeline.storage.uris import storage_errors

STACK_SUFFIXES = (".npy", ".npz", ".pt", ".pth")
NAMES_SUFFIX = ".names.txt"
ENTRY = "w.npy"  # what NVIDIA's projector and generator call the codes of an .npz
_LARGEST_IN_MEMORY = 2 << 30  # of a file of torch before 1.6, which cannot be read in parts
_BLOCK = 8 << 20
_FEWEST_DIGITS = 6
# A code of W in each of 18 rows packs to a twentieth.
_MOST_UNPACKED, _FREE_BYTES = 64, 64 << 20


class _Rows(Protocol):
    """An array [n, n_styles, 512] of floats, or [n, 512], on a disk."""

    shape: tuple[int, ...]

    def row(self, index: int) -> Codes:
        """One code, float32 [n_styles, 512] or [512]."""
        ...


class _ArrayFile:
    """The numbers of a `.npy` file, read a row at a time."""

    def __init__(self, path: Path, source: str) -> None:
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        header = read_header(cast(IO[bytes], self._file))
        _check_numbers(header, path.stat().st_size - self._file.tell(), source)
        self.shape, self._kind, self._start = header.shape, header.dtype, self._file.tell()

    def row(self, index: int) -> Codes:
        """See `_Rows.row`; `EOFError` where the file has been cut off since."""
        size = int(np.prod(self.shape[1:])) * self._kind.itemsize
        content = os.pread(self._file.fileno(), size, self._start + index * size)
        if len(content) < size:
            raise EOFError("it ends before its last code")
        return np.frombuffer(content, self._kind).reshape(self.shape[1:]).astype(np.float32)


class _TensorFile:
    """One tensor in a `.pt` file, mapped into memory where its layout allows."""

    def __init__(self, path: Path, source: str) -> None:
        self._tensor = _mapped_tensor(path, source)
        self.shape = tuple(self._tensor.shape)

    def row(self, index: int) -> Codes:
        """See `_Rows.row`."""
        found: Codes = self._tensor[index].detach().float().numpy()
        return found


class StackedCodes:
    """The codes of one file, by name. Each is checked when it is read; see `CodeFiles`."""

    has_steps = False

    def __init__(self, uri: str, rows: _Rows, names: Sequence[str], digest: str) -> None:
        self.uri, self._rows = uri, rows
        self._index = {name: index for index, name in enumerate(names)}
        listed = hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()
        self.digest = hashlib.sha256(f"{digest}\n{listed}".encode()).hexdigest()

    @property
    def names(self) -> Iterable[str]:
        """The names, in the order of the rows."""
        return self._index

    def read(self, name: str) -> Codes:
        """The code [1, n_styles, 512]; `InputError` for numbers that are not finite."""
        try:
            code = self._rows.row(self._index[name])
        except (EOFError, OSError) as error:
            raise InputError(f"{self.uri}: cannot read code '{name}': {error}") from error
        if not np.isfinite(code).all():
            raise InputError(f"{self.uri}: code '{name}' holds numbers that are not finite")
        return code.reshape(1, -1, STYLE_DIM)

    def uri_of(self, name: str) -> str:  # noqa: ARG002 - one file holds all
        """Where a code came from."""
        return self.uri


def open_stack(uri: str, names: str | None = None) -> StackedCodes | None:
    """The codes of the file at `uri`, named by the list at `names`; None for a file of one code.

    Without a list, codes are named by their numbers, 000000 and on, and an array of two dimensions
    is one code; with one, [n, 512] are n codes of W. A file that is not on this machine's disks is
    copied to them first. Runs nothing of what is in the file. Raises `InputError` in one line.
    """
    listed = read_names(names) if names else None
    path, digest = _local_copy(uri)
    try:
        rows = _open_rows(path, uri)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # whose text offers to run what the file asks for
        raise InputError(f"{uri}: no codes, or damaged (no file of one tensor)") from error
    except Exception as error:  # of a damaged file numpy, zipfile and torch raise whatever comes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{uri}: no codes, or damaged ({reason})") from error
    if listed is None and (len(rows.shape) < 3 or rows.shape[0] == 1):
        if not uri.endswith(".npz"):
            return None
        listed = [PurePosixPath(uri).stem]
    _check_shape(rows.shape, listed, uri, names)
    return StackedCodes(uri, rows, listed or numbered(rows.shape[0]), digest)


def numbered(count: int) -> list[str]:
    """Names of `count` codes, as long as each other, so that they sort as they are counted."""
    digits = max(_FEWEST_DIGITS, len(str(count - 1)))
    return [f"{index:0{digits}d}" for index in range(count)]


def read_names(uri: str) -> list[str]:
    """The lines of a text file in UTF-8; `InputError` for one that is empty or stands twice."""
    folder, _, name = canonical_uri(uri).rpartition("/")
    store = Store(folder or "/")
    if not store.exists(name):
        raise InputError(f"--names: there is no file '{uri}'")
    try:
        lines = store.get(name).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"--names '{uri}' is no text in UTF-8 ({error.reason})") from error
    names = [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    seen: dict[str, int] = {}
    for number, entry in enumerate(names, start=1):
        if not entry:
            raise InputError(f"--names '{uri}': line {number} is empty, and names a code")
        if entry in seen:
            raise InputError(
                f"--names '{uri}': '{entry}' stands in lines {seen[entry]} and {number}"
            )
        seen[entry] = number
    return names


def _check_shape(
    shape: tuple[int, ...], names: Sequence[str] | None, uri: str, listed_in: str | None
) -> None:
    if len(shape) not in (2, 3) or shape[-1] != STYLE_DIM or 0 in shape:
        raise InputError(f"{uri}: has shape {list(shape)}, expected [n, n_styles, {STYLE_DIM}]")
    if names is not None and len(names) != shape[0]:
        raise InputError(
            f"{uri}: holds {shape[0]} codes, and '{listed_in}' has {len(names)} names: one a line "
            "for each code, in the order of the file"
        )


def _check_numbers(header: ArrayHeader, size: int, source: str) -> None:
    if header.dtype.kind != "f":
        raise InputError(f"{source}: holds {header.dtype}, expected floats")
    if header.is_fortran and len(header.shape) > 1:
        raise InputError(
            f"{source}: lies in Fortran's order; save numpy.ascontiguousarray of it instead"
        )
    claimed = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if claimed != size:
        raise InputError(
            f"{source}: damaged ({size} bytes for an array {list(header.shape)} of {header.dtype})"
        )


def _local_copy(uri: str) -> tuple[Path, str]:
    """A file of this machine's disks with the content of `uri`, and its SHA-256."""
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
    """A folder for as long as this process runs: open arrays read from it."""
    folder = Path(tempfile.mkdtemp(prefix="restyle-codes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _open_rows(path: Path, source: str) -> _Rows:
    if source.endswith(".npz"):
        return _ArrayFile(_unpacked(path, source), source)
    if source.endswith(".npy"):
        return _ArrayFile(path, source)
    return _TensorFile(path, source)


def _unpacked(path: Path, source: str) -> Path:
    """The codes of an `.npz` in a file of their own."""
    with open_entry(path, source) as entry:
        copy = _temporary_folder() / ENTRY
        with copy.open("wb") as sink:
            shutil.copyfileobj(entry, sink, _BLOCK)
    return copy


@contextmanager
def open_entry(file: Path | IO[bytes], source: str) -> Iterator[IO[bytes]]:
    """The array `w` of an `.npz`; `InputError` where it has none, or unpacks beyond reason."""
    with zipfile.ZipFile(file) as archive:
        if ENTRY not in archive.namelist():
            have = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:5])
            raise InputError(f"{source}: has no array 'w' (found {have or 'nothing'})")
        info = archive.getinfo(ENTRY)
        if info.file_size > _MOST_UNPACKED * info.compress_size + _FREE_BYTES:
            raise InputError(
                f"{source}: refused, {info.compress_size} bytes unpack to {info.file_size}, more "
                "than codes do"
            )
        with archive.open(info) as entry:
            yield entry


def _mapped_tensor(path: Path, source: str) -> Any:
    """The tensor of floats in a `.pt` file, of which only what is read is in memory."""
    import torch  # numpy's files need none of it

    from pipeline.models.checkpoint import refuse_bomb

    with path.open("rb") as file:
        refuse_bomb(file, source)
        in_parts = zipfile.is_zipfile(file)
    if not in_parts and path.stat().st_size > _LARGEST_IN_MEMORY:
        raise InputError(
            f"{source}: {path.stat().st_size} bytes in torch's older layout, which is read whole; "
            "save it again with a newer torch, or as .npy"
        )
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=in_parts)
    if not isinstance(found, torch.Tensor):
        raise InputError(f"{source}: holds a {type(found).__name__}, expected one tensor of codes")
    if not found.is_floating_point():
        raise InputError(f"{source}: holds {found.dtype}, expected floats")
    if found.numel() * found.element_size() > found.untyped_storage().nbytes():
        raise InputError(
            f"{source}: a tensor {list(found.shape)} claims more numbers than it holds"
        )
    return found


def export_stacked(selection: Selection, uri: str) -> tuple[int, str]:
    """Write the codes as one array [n, n_styles, 512], float32, and their names beside it.

    The suffix of `uri` decides: `.npy` and `.pt` are the array, `.npz` has it as `w`. The list
    `<uri without suffix>.names.txt` names the rows, one a line. Returns the number of codes and the
    list's URI. The array is made on this machine's disk and then put: memory holds a few codes.
    """
    count, _ = selection.counts()
    refuse_nothing(count, selection)
    n_styles = selection.table.spec.columns.n_styles
    folder, _, name = canonical_uri(uri).rpartition("/")
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    store = Store(folder or "/")
    with tempfile.TemporaryDirectory(prefix="restyle-codes-") as made:
        array, names = Path(made) / "codes.npy", Path(made) / "names"
        _write_rows(selection, array, names, (count, n_styles, STYLE_DIM))
        # The array last: where it is there, so is the list that belongs to it.
        store.put_file(f"{stem}{NAMES_SUFFIX}", names)
        store.put_file(name, _in_form(array, suffix))
    return count, store.uri(f"{stem}{NAMES_SUFFIX}")


def _write_rows(
    selection: Selection, array: Path, names: Path, shape: tuple[int, int, int]
) -> None:
    written = 0
    with array.open("wb") as codes, names.open("w", encoding="utf-8", newline="\n") as listed:
        header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(codes, header)
        for row in selection.rows("w_plus"):
            if "\n" in row["name"] or "\r" in row["name"]:
                raise ConfigError(
                    f"the name of {row['image_id']!r} has a line break, which a list of names has "
                    "no room for: export single codes (--as codes), or leave it out with --where"
                )
            codes.write(np.ascontiguousarray(row["w_plus"], "<f4").tobytes())
            listed.write(f"{row['name']}\n")
            written += 1
    if written != shape[0]:
        raise ConfigError(
            f"the table gave {written} codes, and {shape[0]} when they were counted: run again"
        )


def _in_form(array: Path, suffix: str) -> Path:
    """The `.npy` file `array` in the layout of `suffix`."""
    if suffix == ".npy":
        return array
    formed = array.with_name(f"codes{suffix}")
    if suffix == ".npz":
        with zipfile.ZipFile(formed, "w", allowZip64=True) as archive:
            archive.write(array, ENTRY)
        return formed
    import torch  # numpy's files need none of it

    mapped = np.lib.format.open_memmap(array, mode="r+")
    torch.save(torch.from_numpy(mapped), formed)
    return formed
