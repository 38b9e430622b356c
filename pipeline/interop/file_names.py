"""Convert names of faces to file names and back; keys from archives can be any text.

`../x`, `/x`, `a//b` and `./x` would be other places, or the same place for two faces. A leading dot
of a component is escaped as `%2E`, a leading `%` as `%25`, and an empty component as `%`. Every
other name is its own file name.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.storage import Store, is_local
from pipeline.storage.store import TEMPORARY_BYTES

_COMPONENT_BYTES = 255  # limit of common file systems
_PATH_BYTES = 4095  # Linux's PATH_MAX without its null character
_KEY_BYTES = 1024  # limit of a whole key in S3 and Google Cloud Storage
_ESCAPES = {".": "%2E", "%": "%25"}


def to_file_name(name: str) -> str:
    """Return `name` as a relative path inside its folder; different names stay different."""
    return "/".join(map(_to_component, name.split("/")))


def from_file_name(path: str) -> str:
    """Return the name from which `to_file_name` made `path`."""
    return "/".join(map(_from_component, path.split("/")))


def to_sample_key(name: str) -> str:
    """Return `name` as the key of a WebDataset sample: a relative path, its last part without dots.

    A sample's files are the key and what follows the first dot behind the last slash, so that dots
    there become `%2E`, and `%` becomes `%25`.
    """
    folder, slash, last = name.rpartition("/")
    escaped = last.replace("%", "%25").replace(".", "%2E") or "%"
    return (to_file_name(folder) if slash else "") + slash + escaped


def from_sample_key(key: str) -> str:
    """Return the name from which `to_sample_key` made `key`."""
    folder, slash, last = key.rpartition("/")
    name = "" if last == "%" else last.replace("%2E", ".").replace("%25", "%")
    return (from_file_name(folder) if slash else "") + slash + name


class Limits(NamedTuple):
    """Maximum lengths of file names at one location, in bytes."""

    path: int
    component: int | None

    def why_not(self, path: str) -> str:
        """Return why a file at the relative `path` is impossible; "" if it is possible."""
        if "\0" in path:
            return "it contains a null character"
        content = path.encode(errors="replace")
        if self.component and max(map(len, content.split(b"/"))) > self.component:
            return f"more than {self.component} bytes between slashes, including the suffix"
        if len(content) > self.path:
            return f"it has {len(content)} bytes, but at most {self.path} are possible there"
        return ""


def limits_of(uri: str, folder: str = "") -> Limits:
    """Return the limits below `folder` ("" or with a trailing slash) at `uri`."""
    store = Store(uri)
    prefix_bytes = len(store.path(folder + "x").encode(errors="replace")) - 1
    if is_local(uri):
        return Limits(_PATH_BYTES - TEMPORARY_BYTES - prefix_bytes, _COMPONENT_BYTES)
    bucket = store.path().split("/", 1)[0]
    return Limits(_KEY_BYTES - (prefix_bytes - len(bucket.encode()) - 1), None)


def _to_component(part: str) -> str:
    if not part:
        return "%"
    return _ESCAPES.get(part[0], part[0]) + part[1:]


def _from_component(part: str) -> str:
    if part == "%":
        return ""
    for char, escape in _ESCAPES.items():
        if part.startswith(escape):
            return char + part[len(escape) :]
    return part
