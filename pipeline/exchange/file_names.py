"""Names of faces as names of files, and back: keys out of archives are any text.

`../x`, `/x`, `a//b` and `./x` are names of other places, or of two faces at one place. Of each
component that begins with a dot or is empty, as of those that begin with `%`, the beginning is
written as `%2E`, `%` and `%25`; every other name is its own file name.
"""

from __future__ import annotations

# Bytes of one component on the usual file systems, without the longest suffix that is put behind.
LONGEST_COMPONENT = 255 - len(".png")
_WRITTEN = {".": "%2E", "%": "%25"}


def to_file_name(name: str) -> str:
    """`name` as a relative path that stays inside its folder; different names stay different."""
    return "/".join(map(_to_component, name.split("/")))


def from_file_name(path: str) -> str:
    """The name that `to_file_name` made `path` of."""
    return "/".join(map(_from_component, path.split("/")))


def fits(name: str) -> bool:
    """Whether a disk takes `name`: no component is too long, and none holds a null character."""
    longest = max(len(part.encode(errors="replace")) for part in to_file_name(name).split("/"))
    return longest <= LONGEST_COMPONENT and "\0" not in name


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
