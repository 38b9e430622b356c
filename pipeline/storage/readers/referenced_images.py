"""Read images that a Parquet file references by path instead of holding their bytes.

The paths are untrusted: none may lead out of the Parquet file's own folder. A table made from a
stranger's file must not show other files on the disk or in the bucket.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample, too_large
from pipeline.storage.uris import filesystem, is_local, is_local_filesystem, join, storage_errors

_MAX_SHOWN_PATH = 300
_LOCAL_SCHEME = re.compile(r"^(file|local)://")


def read_referenced_image(file_uri: str, path: str | None, key: str, row_uri: str) -> Sample:
    """Read the image at `path` in the folder of the Parquet file at `file_uri`.

    `path` is relative to that folder, or a whole path into it. Returns a `no_bytes` reject if there
    is no path, if it leads out of the folder, or if no file exists there. Raises `StorageError` if
    the storage does not answer.
    """
    if not path:
        return _no_bytes(key, row_uri, "the row holds neither bytes nor the path of an image")
    short = path if len(path) <= _MAX_SHOWN_PATH else f"{path[:_MAX_SHOWN_PATH]}..."
    folder = file_uri.rsplit("/", 1)[0]
    name = _name_inside(folder, path)
    if name is None:
        return _no_bytes(
            key,
            row_uri,
            f"the row holds no bytes, and its path '{short}' is not opened: it leads out of the "
            "Parquet file's folder",
        )
    uri = join(folder, name)
    try:
        return _read(uri, key)
    except StorageError as error:
        if not _is_final(uri, error.__cause__):
            raise
        return _no_bytes(
            key, row_uri, f"the row holds no bytes, and there is no file to read at '{short}'"
        )


def _no_bytes(key: str, uri: str, detail: str) -> Sample:
    return Sample(key, uri, b"", "no_bytes", detail)


def _name_inside(folder: str, path: str) -> str | None:
    """Return `path` relative to `folder`; None if it is not inside."""
    if is_local(folder):
        path = _LOCAL_SCHEME.sub("", path)
    if path.startswith(f"{folder}/"):
        path = path[len(folder) + 1 :]
    parts = path.split("/")
    if path.startswith("/") or "://" in path or "\0" in path or ".." in parts:
        return None
    name = "/".join(part for part in parts if part not in ("", "."))
    if not name:
        return None
    if is_local(folder):
        inside = os.path.realpath(folder)
        # A link may lead anywhere.
        if not os.path.realpath(join(folder, name)).startswith(f"{inside}/"):
            return None
    return name


def _is_final(uri: str, error: BaseException | None) -> bool:
    """Return whether later runs cannot read a file at `uri` either.

    Access denied by a bucket is not final: credentials may have expired.
    """
    if isinstance(error, PermissionError):
        return is_local(uri)
    final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, final) or getattr(error, "errno", None) == errno.ENAMETOOLONG


def _read(uri: str, key: str) -> Sample:
    fs, path = filesystem(uri)
    with storage_errors(f"read '{uri}'"):
        details = fs.info(path)
        if details["type"] != "file" or (is_local_filesystem(fs) and not Path(path).is_file()):
            raise FileNotFoundError(path)
        size = int(details.get("size") or 0)
        if size > MAX_SAMPLE_BYTES:
            return too_large(key, uri, size)
        return Sample(key, uri, bytes(fs.cat_file(path, start=0, end=size)))
