"""Names of faces as names of files, and back: keys out of archives are any text.

`../x`, `/x`, `a//b` and `./x` are names of other places, or of two faces at one place. Of each
component that begins with a dot or is empty, as of those that begin with `%`, the beginning is
written as `%2E`, `%` and `%25`; every other name is its own file name.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.storage import Store, is_local
from pipeline.storage.store import TEMPORARY_BYTES

_COMPONENT_BYTES = 255  # of the usual file systems
_PATH_BYTES = 4095  # Linux's PATH_MAX without its null character
_KEY_BYTES = 1024  # of S3 and Google's storage, the folders in it
_WRITTEN = {".": "%2E", "%": "%25"}


def to_file_name(name: str) -> str:
    """`name` as a relative path that stays inside its folder; different names stay different."""
    return "/".join(map(_to_component, name.split("/")))


def from_file_name(path: str) -> str:
    """The name that `to_file_name` made `path` of."""
    return "/".join(map(_from_component, path.split("/")))


class Limits(NamedTuple):
    """How long names of files may be at a place: all in bytes."""

    path: int
    component: int | None

    def why_not(self, path: str) -> str:
        """Why the place takes no file at the relative `path`; "" if it does."""
        if "\0" in path:
            return "it holds a null character"
        content = path.encode(errors="replace")
        if self.component and max(map(len, content.split(b"/"))) > self.component:
            return f"more than {self.component} bytes between slashes, its suffix with them"
        if len(content) > self.path:
            return f"{len(content)} bytes, and the place takes {self.path} below its own path"
        return ""


def limits_of(uri: str, folder: str = "") -> Limits:
    """The limits of what is written below `folder`, which is empty or ends in a slash, at `uri`."""
    store = Store(uri)
    above = len(store.path(folder + "x").encode(errors="replace")) - 1
    if is_local(uri):
        return Limits(_PATH_BYTES - TEMPORARY_BYTES - above, _COMPONENT_BYTES)
    bucket = store.path().split("/", 1)[0]
    return Limits(_KEY_BYTES - (above - len(bucket.encode()) - 1), None)


def _to_component(part: str) -> str:
    if not part:
        return "%"
    return _WRITTEN.get(part[0], part[0]) + part[1:]


def _from_component(part: str) -> str:
    if part == "%":
        return ""
    for char, written in _WRITTEN.items():
        if part.startswith(written):
            return char + part[len(written) :]
    return part
