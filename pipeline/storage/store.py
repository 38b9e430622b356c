"""Named objects below one root, on a disk or in a bucket, with atomic writes."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pipeline.errors import InputError, StorageError
from pipeline.storage.objects import (
    ObjectInfo,
    local_info,
    object_info,
)
from pipeline.storage.s3 import bucket_and_prefix, is_bucket, listing_pages
from pipeline.storage.uris import (
    canonical_uri,
    filesystem,
    is_local_filesystem,
    join,
    storage_errors,
)

# Errors of a file system without hard links, or without flags of `rename`.
_UNSUPPORTED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def name_if_absent(temporary: Path, target: Path) -> None:
    """Rename the complete file `temporary` to `target`; `FileExistsError` if `target` exists.

    Uses a hard link, which unlike a rename fails if the name is taken. File systems without links
    (FUSE, exFAT, some network mounts) get Linux's exclusive rename. Without both, `target` is
    checked and then renamed: the file is still complete, but of two writers that check at the same
    moment the second replaces the file of the first.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if not _rename_exclusively(temporary, target):
            if os.path.lexists(target):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            temporary.rename(target)


def _rename_exclusively(temporary: Path, target: Path) -> bool:
    """Rename without replacing; return False if the kernel or the file system cannot do this."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = (os.fsencode(temporary), os.fsencode(target))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


# Maximal number of bytes that a temporary file's name adds to the target's: two dots, the process
# id, a dash, eight digits and ".tmp".
TEMPORARY_BYTES = 2 + len(str(1 << 22)) + 1 + 8 + 4
_COPY_BLOCK = 8 << 20  # bytes; of a local file that is copied


class Store:
    """Objects named by relative paths with forward slashes below `root`, a path or fsspec URI.

    `put` is atomic: readers see the whole object or none of it. On a disk it writes a temporary
    file beside the target, syncs it, renames it and syncs the directory. The temporary file is
    hidden and has another suffix, so that `*.parquet` never matches it. On an object store it is
    one upload, which becomes visible when it is complete. A killed writer leaves at most a hidden
    temporary file. Listings are never cached. A pickled store holds only its root.

    Every failure is a `StorageError` with a message of one line.
    """

    def __init__(self, root: str) -> None:
        self.root = canonical_uri(root)
        self._fs: Any = None

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @property
    def fs(self) -> Any:
        """Return the fsspec file system of the store, opened on first use."""
        if self._fs is None:
            self._fs = filesystem(self.root)[0]
        return self._fs

    def uri(self, name: str = "") -> str:
        """Return the URI of an object; of the root without a name."""
        return join(self.root, name)

    def path(self, name: str = "") -> str:
        """Return the path of an object on `fs`, without scheme: `bucket/key` on S3."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts:
            raise StorageError(f"'{name}' is not a name inside '{self.root}'")
        return join(str(self.fs._strip_protocol(self.root)), name)

    def put(self, name: str, content: bytes | Path) -> None:
        """Write `content`, bytes or a local file, under `name`, replacing an existing object.

        Of a local file memory holds a few blocks. Large ones are uploaded to an object store in
        several parts.
        """
        with storage_errors(f"write '{self.uri(name)}'"):
            if is_local_filesystem(self.fs):
                with _complete_file(Path(self.path(name)), content) as temporary:
                    temporary.replace(self.path(name))
            else:
                self._upload(name, content)

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        """Write `content`, as `put` does, under `name` unless it exists.

        Return whether it was written: of two concurrent writers one gets True and the other False.
        Object stores use a conditional put; a store that ignores or rejects the condition is still
        checked before the write. Disks use `name_if_absent`.
        """
        if self.exists(name):
            return False
        try:
            with storage_errors(f"write '{self.uri(name)}'"):
                self._create(name, content)
        except StorageError:
            # Stores report an existing object with different errors.
            if self.exists(name):
                return False
            raise
        return True

    def _create(self, name: str, content: bytes | Path) -> None:
        if is_local_filesystem(self.fs):
            with _complete_file(Path(self.path(name)), content) as temporary:
                name_if_absent(temporary, Path(self.path(name)))
        else:
            try:
                self._upload(name, content, mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:  # 501: the store supports no conditions
                    raise
                self._upload(name, content)

    def _upload(self, name: str, content: bytes | Path, **mode: str) -> None:
        if isinstance(content, Path):
            self.fs.put_file(str(content), self.path(name), **mode)
        else:
            self.fs.pipe_file(self.path(name), content, **mode)

    def get(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a whole object, or its bytes from `start` up to `end`, exclusive."""
        with storage_errors(f"read '{self.uri(name)}'"):
            return bytes(self.fs.cat_file(self.path(name), start=start, end=end))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open an object as a seekable binary file without read-ahead."""
        with (
            storage_errors(f"read '{self.uri(name)}'"),
            self.fs.open(self.path(name), "rb", cache_type="none") as file,
        ):
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        """Return whether the object exists."""
        with storage_errors(f"look up '{self.uri(name)}'"):
            try:
                return bool(self.fs.info(self.path(name))["type"] == "file")
            except (FileNotFoundError, NotADirectoryError):  # the latter below a file
                return False

    def info(self, name: str) -> ObjectInfo:
        """Return size, etag and time of an object; `StorageError` if it is missing."""
        with storage_errors(f"look up '{self.uri(name)}'"):
            if is_local_filesystem(self.fs):
                return local_info(Path(self.path(name)).stat())
            return object_info(self.fs.info(self.path(name)))

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all objects that start with `prefix`, at any depth.

        Temporary files of writers are left out. A missing root holds no objects.
        """
        return sorted(self.each_name(prefix))

    def each_name(self, prefix: str = "") -> Iterator[str]:
        """Yield what `names` returns, unsorted and without holding the listing in memory."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            for name, _ in self._find(prefix, detail=False):
                yield name

    def infos(self, prefix: str = "") -> Iterator[tuple[str, ObjectInfo]]:
        """Yield name and `info` of each object that `names` lists, unsorted, while listing."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            for name, info in self._find(prefix, detail=True):
                if info:
                    yield name, info

    def has(self, prefix: str) -> bool:
        """Return whether any object exists below the folder `prefix`, with one request."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            try:  # `fs.exists` returns False for a bucket on every error
                self.fs.info(self.path(prefix.rstrip("/")))
            except FileNotFoundError:
                return False
            return True

    def _find(self, prefix: str, *, detail: bool) -> Iterator[tuple[str, ObjectInfo | None]]:
        """Yield names and infos. Without `detail` infos that cost a system call are None."""
        folder, _, last = prefix.rpartition("/")
        above = f"{folder}/" if folder else ""
        if is_local_filesystem(self.fs):
            items = _files_below(self.path(folder), above, prefix, detail=detail)
        elif is_bucket(self.fs):
            items = _objects_of_bucket(self.fs, self.path(folder), above, last)
        else:
            items = _objects_below(self.fs, self.path(folder), above)
        return (item for item in items if item[0].startswith(prefix) and not is_temporary(item[0]))

    def remove(self, name: str) -> None:
        """Delete an object. A missing object is no error, so that a removal can be repeated."""
        with storage_errors(f"remove '{self.uri(name)}'"):
            try:
                self.fs.rm_file(self.path(name))
            except FileNotFoundError:
                return


def _files_below(
    folder: str, above: str, prefix: str, *, detail: bool
) -> Iterator[tuple[str, ObjectInfo | None]]:
    """Yield the files below `folder` of a disk whose names start with `prefix`, at any depth.

    `above` is put in front of each name before it is compared. The second item is None without
    `detail`. A missing folder holds no files. Links to folders are not followed.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as children:
        for child in children:
            name = above + child.name
            if not child.is_dir():
                if name.startswith(prefix):
                    # A concurrent run may delete the file; then it is not listed.
                    with suppress(FileNotFoundError):
                        yield name, local_info(child.stat()) if detail else None
            elif not child.is_symlink():
                yield from _files_below(child.path, f"{name}/", prefix, detail=detail)


def _objects_of_bucket(
    fs: Any, folder: str, above: str, start: str
) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the objects below `folder` of S3 whose names start with `start`.

    `above` is put in front of each name. Reads pages of a thousand objects: `fs.find` would hold
    1 kB for each of a million parts.
    """
    bucket, prefix = bucket_and_prefix(fs, folder)
    with suppress(FileNotFoundError):  # no such bucket
        for page in listing_pages(fs, bucket, prefix + start):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # the "folder markers" of some programs
                    yield above + item["Key"][len(prefix) :], object_info(item)


def _objects_below(fs: Any, folder: str, above: str) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the objects below `folder` of another storage, at any depth.

    `above` is put in front of each name.
    """
    try:
        listing = fs.find(folder, detail=True)
    except FileNotFoundError:
        return
    for path, details in listing.items():
        yield above + str(path)[len(folder) + 1 :], object_info(details)


def is_temporary(name: str) -> bool:
    """Return whether `name` is that of a temporary file, which a writer leaves if it is killed."""
    last = name.rsplit("/", 1)[-1]
    return last.startswith(".") and last.endswith(".tmp")


@contextmanager
def _complete_file(target: Path, content: bytes | Path) -> Iterator[Path]:
    """Write and sync a temporary file beside `target`, which the caller renames.

    `content` is its content, or the path of the file to copy.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of the maximal length must be cut for the additions.
    start = target.name.encode(errors="surrogateescape")[: 255 - TEMPORARY_BYTES]
    kept = start.decode(errors="ignore")
    temporary = target.with_name(f".{kept}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _COPY_BLOCK)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_place(uri: str) -> tuple[Store, str]:
    """Return the folder of a file as a store, and the file's name in it.

    Raises `InputError` for a URI that ends with its bucket, such as `s3://sheet.png`.
    """
    folder, _, name = canonical_uri(uri).rpartition("/")
    if folder.endswith(":/"):
        raise InputError(f"'{uri}' is a bucket: name a file in it")
    return Store(folder or "/"), name
