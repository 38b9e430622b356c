"""Named objects below one root, on a disk or in a bucket, put whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pipeline.errors import StorageError
from pipeline.storage.objects import (
    ObjectInfo,
    files_below,
    local_info,
    object_info,
    objects_below,
    objects_of_bucket,
)
from pipeline.storage.uris import (
    canonical_uri,
    filesystem,
    is_local_filesystem,
    join,
    storage_errors,
)

# What a file system says that has no hard links, or no flags of a rename: not one that is full.
_UNKNOWN = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def name_if_absent(temporary: Path, target: Path) -> None:
    """Give a complete file its name; `FileExistsError` where there is one.

    By a link, which unlike a rename refuses a name that is taken; where the file system has none
    (FUSE, exFAT, some network mounts), by Linux's rename that refuses it too. Where there is
    neither, by a look and a rename: the file is whole as ever, but of two writers that look in the
    same moment the second replaces what the first wrote.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        if not _renamed(temporary, target):
            if os.path.lexists(target):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            temporary.rename(target)


def _renamed(temporary: Path, target: Path) -> bool:
    """Whether the kernel and the file system know a rename that replaces nothing, and made it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = (os.fsencode(temporary), os.fsencode(target))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))


# What the name of a temporary file has more than the file's own, at most: a dot before it, a dot,
# the process's number, a dash, eight digits and ".tmp" behind it.
TEMPORARY_BYTES = 2 + len(str(1 << 22)) + 1 + 8 + 4
_COPIED = 8 << 20  # bytes at a time of a file that is put


class Store:
    """Objects named by relative paths with forward slashes below `root`, a path or fsspec URI.

    A put is atomic: readers see the whole object or none of it. On a disk it is a temporary file
    beside the target (hidden, not ending in the target's suffix, so that `*.parquet` never
    matches it), fsync, rename, fsync of the directory. On an object store it is one upload, which
    becomes visible when it is complete. A writer that is killed leaves at most a hidden
    temporary file behind. Listings are never cached. Stores pickle as their root alone.

    Every failure is a `StorageError` in one line.
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
        """The fsspec file system behind the store, for readers that take one."""
        if self._fs is None:
            self._fs = filesystem(self.root)[0]
        return self._fs

    def uri(self, name: str = "") -> str:
        """The URI of an object; of the root without a name."""
        return join(self.root, name)

    def path(self, name: str = "") -> str:
        """The path of an object on `fs`: no scheme, `bucket/key` on S3."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts:
            raise StorageError(f"'{name}' is not a name inside '{self.root}'")
        return join(str(self.fs._strip_protocol(self.root)), name)

    def put(self, name: str, content: bytes) -> None:
        """Write `content` under `name`, replacing what was there."""
        with storage_errors(f"write '{self.uri(name)}'"):
            if is_local_filesystem(self.fs):
                with _complete_file(Path(self.path(name)), content) as temporary:
                    temporary.replace(self.path(name))
            else:
                self.fs.pipe_file(self.path(name), content)

    def put_file(self, name: str, source: Path) -> None:
        """Write the local file `source` under `name`, replacing what was there.

        Memory holds a few blocks of it; an object store is sent large files in several pieces.
        """
        with storage_errors(f"write '{self.uri(name)}'"):
            if is_local_filesystem(self.fs):
                with _complete_file(Path(self.path(name)), source) as temporary:
                    temporary.replace(self.path(name))
            else:
                self.fs.put_file(str(source), self.path(name))

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write `content` under `name` unless it exists; whether it was written.

        Of two writers at the same moment one wins and the other is told False. Object stores do
        this with a conditional put; one that ignores the condition, or says that it knows none,
        still refuses what existed before the call. Disks do as `name_if_absent` says.
        """
        if self.exists(name):
            return False
        try:
            with storage_errors(f"write '{self.uri(name)}'"):
                self._create(name, content)
        except StorageError:
            # Each store says "it exists" with another error.
            if self.exists(name):
                return False
            raise
        return True

    def _create(self, name: str, content: bytes) -> None:
        if is_local_filesystem(self.fs):
            with _complete_file(Path(self.path(name)), content) as temporary:
                name_if_absent(temporary, Path(self.path(name)))
        else:
            try:
                self.fs.pipe_file(self.path(name), content, mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:  # 501: the store knows no condition
                    raise
                self.fs.pipe_file(self.path(name), content)

    def get(self, name: str) -> bytes:
        """The whole object."""
        with storage_errors(f"read '{self.uri(name)}'"):
            return bytes(self.fs.cat_file(self.path(name)))

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` up to `end`."""
        with storage_errors(f"read '{self.uri(name)}'"):
            return bytes(self.fs.cat_file(self.path(name), start=start, end=end))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The object as a seekable binary file; each read fetches what it asks for, no more."""
        with (
            storage_errors(f"read '{self.uri(name)}'"),
            self.fs.open(self.path(name), "rb", cache_type="none") as file,
        ):
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with storage_errors(f"look up '{self.uri(name)}'"):
            try:
                return bool(self.fs.info(self.path(name))["type"] == "file")
            except FileNotFoundError:
                return False

    def info(self, name: str) -> ObjectInfo:
        """Size and etag of an object; `StorageError` if it is missing."""
        with storage_errors(f"look up '{self.uri(name)}'"):
            if is_local_filesystem(self.fs):
                return local_info(Path(self.path(name)).stat())
            return object_info(self.fs.info(self.path(name)))

    def names(self, prefix: str = "") -> list[str]:
        """The sorted names of all objects that start with `prefix`, at any depth.

        Temporary files of writers are left out. A root that does not exist holds nothing.
        """
        return sorted(self.each_name(prefix))

    def each_name(self, prefix: str = "") -> Iterator[str]:
        """What `names` gives, while it is listed, in no order: none of it is held."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            for name, _ in self._find(prefix, detail=False):
                yield name

    def infos(self, prefix: str = "") -> Iterator[tuple[str, ObjectInfo]]:
        """What `info` says of all that `names` lists, while it is listed, in no order."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            for name, info in self._find(prefix, detail=True):
                if info:
                    yield name, info

    def has(self, prefix: str) -> bool:
        """Whether there is any object below the folder `prefix`: one request."""
        with storage_errors(f"list '{self.uri(prefix)}'"):
            try:  # `fs.exists` says of a bucket that it is not there, whatever the error is
                self.fs.info(self.path(prefix.rstrip("/")))
            except FileNotFoundError:
                return False
            return True

    def _find(self, prefix: str, *, detail: bool) -> Iterator[tuple[str, ObjectInfo | None]]:
        """Names with what is known of them, one by one; `detail` asks for it where it costs."""
        folder, _, last = prefix.rpartition("/")
        above = f"{folder}/" if folder else ""
        if is_local_filesystem(self.fs):
            found = files_below(self.path(folder), above, prefix, detail=detail)
        elif "s3" in self.fs.protocol:
            found = objects_of_bucket(self.fs, self.path(folder), above, last)
        else:
            found = objects_below(self.fs, self.path(folder), above)
        return (one for one in found if one[0].startswith(prefix) and not is_temporary(one[0]))

    def remove(self, name: str) -> None:
        """Delete an object; a missing one is no error, so that a removal can be repeated."""
        with storage_errors(f"remove '{self.uri(name)}'"):
            try:
                self.fs.rm_file(self.path(name))
            except FileNotFoundError:
                return


def is_temporary(name: str) -> bool:
    """Return whether an object of this name is what a writer leaves that was killed in a put."""
    last = name.rsplit("/", 1)[-1]
    return last.startswith(".") and last.endswith(".tmp")


@contextmanager
def _complete_file(target: Path, content: bytes | Path) -> Iterator[Path]:
    """A temporary file beside `target` that holds `content` safely; the caller renames it.

    Of a path the content is that of the file there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name as long as a name may be has no room for more.
    start = target.name.encode(errors="surrogateescape")[: 255 - TEMPORARY_BYTES]
    kept = start.decode(errors="ignore")
    temporary = target.with_name(f".{kept}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _COPIED)
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
