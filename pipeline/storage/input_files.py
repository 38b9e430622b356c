"""What an input may be: a folder, a file, a text file of URIs, a pattern; which files it means."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.errors import InputError, StorageError
from pipeline.storage.file_types import is_list, plain_name, shard_kind
from pipeline.storage.left_out import NAMED_TWICE, LeftOut
from pipeline.storage.listing import Entry, Place, file_entry, is_folder, looked_up, walk
from pipeline.storage.objects import UNREADABLE, present_state
from pipeline.storage.output_check import check_beside
from pipeline.storage.patterns import (
    Glob,
    count_braces,
    expand_braces,
    has_braces,
    has_glob,
    literal_folder,
)
from pipeline.storage.recognition import mark_beside_tars
from pipeline.storage.uris import canonical_uri, filesystem, is_local, is_web, join, read_file

LOOKED_FOR = (
    "looked for .tar, .tar.gz (.bz2, .xz, .zst), .zip and .parquet shards, and for image files, "
    "at any depth"
)
NO_LISTING = (
    "a web server lists no folders: name its files in a text file, a URI a line, or by a range "
    "such as {00000..00127}.tar"
)
_MOST_NAMES = 1_000_000  # that braces may stand for
_MOST_GLOBS = 1000  # that braces may stand for: each is a listing of its own
_LARGEST_SHOWN = 10**30  # of the counts of names: Python writes none of over 4300 digits
_LONGEST_KEY = 1024  # of an object in a bucket
_SLASHES_OF_A_FILE = 3  # https://host/file
_SHOWN = 3  # of the shards that are missing


@dataclass(frozen=True)
class Source:
    """The files that an input means, as entries in its order.

    Of a `folder` the names are relative to `uri`; of a `list`, a text file at `uri`, they are
    relative to its folder, or URIs. `alone` is one file that is the input itself.
    """

    kind: Literal["folder", "list"]
    uri: str
    entries: Iterator[Entry]
    alone: bool = False

    def uri_of(self, name: str) -> str:
        """The URI of the file with this name."""
        return uri_in(self.kind, self.uri, name)


def uri_in(kind: str, uri: str, name: str) -> str:
    """The URI of the file `name` of a `Source` of this kind."""
    if kind != "list":
        return join(uri, name)
    return name if _is_absolute(name) else join(_split(uri)[0], name)


def open_input(root: str, left_out: LeftOut) -> Source:
    """The files of the input `root`, a `canonical_uri`, which are listed as they are taken.

    What exists by that very name is no pattern. What is passed over is counted in `left_out`.
    Raises `InputError` where there is nothing, also while entries are taken.
    """
    if is_web(root) and root.count("/") < _SLASHES_OF_A_FILE:
        raise InputError(f"'{root}' names no file; {NO_LISTING}")
    try:
        kind = _kind_of(root)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise InputError(f"the input '{root}' does not exist; {LOOKED_FOR}") from error
    if kind == "pattern":
        return _pattern(root, left_out)
    if kind == "folder":
        return Source("folder", root, _below(root, left_out))
    if is_list(plain_name(root)):
        return _list(root, left_out)
    folder, name = _split(root)
    return Source("folder", folder, iter([file_entry(root)._replace(name=name)]), alone=True)


def _kind_of(root: str) -> Literal["folder", "file", "pattern"]:
    fs, path = filesystem(root)
    special = has_braces(root) or has_glob(root)
    if is_local(root):
        unnamable = not os.path.lexists(path)
    else:
        unnamable = len(path) > _LONGEST_KEY or not literal_folder(root)
    if special and unnamable:
        return "pattern"
    try:
        return "folder" if is_folder(fs, path, root) else "file"
    except StorageError as error:
        if special and isinstance(error.__cause__, FileNotFoundError):
            return "pattern"
        raise


def _below(folder: str, left_out: LeftOut) -> Iterator[Entry]:
    fs, path = filesystem(folder)
    return mark_beside_tars(walk(fs, path, folder, left_out))


def _pattern(root: str, left_out: LeftOut) -> Source:
    """The files that fit a pattern: their names are relative to the folder before it."""
    folder = literal_folder(root) or ("/" if is_local(root) else "")
    count = count_braces(root)
    if not folder:
        raise InputError(
            f"the bucket or host of '{root}' is part of the pattern: name the folders or files in "
            "a text file, a URI a line, and pass that"
        )
    _check_count(root, count)
    begin = len(folder.rstrip("/")) + 1
    names = _Names(
        lambda: expand_braces(root), f"the pattern '{root}'", lambda uri: uri[begin:], strict=True
    )
    return Source("folder", folder, _named(names, left_out))


def _check_count(pattern: str, count: int) -> None:
    most = _MOST_GLOBS if has_glob(pattern) else _MOST_NAMES
    if count > most:
        kind = "patterns" if has_glob(pattern) else "names"
        shown = pattern if len(pattern) <= _LONGEST_KEY else f"{pattern[:_LONGEST_KEY]}..."
        number = f"{count:,}" if count <= _LARGEST_SHOWN else f"over {_LARGEST_SHOWN:,}"
        raise InputError(f"'{shown}' stands for {number} {kind}, of at most {most:,}: cut it")


def _list(uri: str, left_out: LeftOut) -> Source:
    """The files that the lines of a text file name."""
    content, folder = read_file(uri), _split(uri)[0]

    def name_of(item: str) -> str:
        name = item.removeprefix(f"{folder.rstrip('/')}/")
        return item if _is_absolute(name) else name

    names = _Names(lambda: _lines(content, uri, folder), f"the list '{uri}'", name_of)
    return Source("list", uri, _named(names, left_out))


def _lines(content: bytes, uri: str, folder: str) -> Iterator[str]:
    """The URIs of a text file's lines; relative paths are relative to its folder."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline=None)
    for number, line in enumerate(text, start=1):
        given = line.strip()
        if not given or given.startswith("#"):
            continue
        try:
            absolute = _is_absolute(given) or given.startswith("~")
            whole = canonical_uri(given if absolute else join(folder, given))
            _check_line(whole)
        except InputError as error:
            raise InputError(f"line {number} of '{uri}': {error}") from error
        literal = is_local(whole) and os.path.lexists(whole)
        yield from [whole] if literal else expand_braces(whole)


def _check_line(uri: str) -> None:
    if is_list(plain_name(uri)):
        raise InputError(f"'{uri}' is a list, which a list does not name; {LOOKED_FOR}")
    _check_count(uri, count_braces(uri))


@dataclass(frozen=True)
class _Names:
    """URIs that an input names: files, folders and patterns; and what they are called in it."""

    uris: Callable[[], Iterator[str]]
    what: str  # names them, for a person
    name_of: Callable[[str], str]
    strict: bool = False  # whether an image that is missing is a mistake, and no reject


def _named(names: _Names, left_out: LeftOut) -> Iterator[Entry]:
    """The entries of all that is named, each once, in the order in which it is named.

    What must not be missing is looked up first of all, so that it is told before any work. Where
    something else is missing the entry cannot be read, unless all is missing. Raises `InputError`
    for these.
    """
    known = _looked_up_first(names)
    taken, missing = _Taken(left_out), list[Entry]()
    found = False
    for place in _places(names, known):
        if place.is_there or has_glob(place.uri):
            found = True
            yield from missing
            missing = []
            yield from taken.once(place, names)
        elif not taken.covers(place.uri, count=True):
            taken.files.add(hash(place.uri))
            missing.append(Entry(names.name_of(place.uri), 0, UNREADABLE))
            if found:
                yield missing.pop()
    if not found:
        first = next(names.uris(), None)
        shown = f"nothing that {names.what} names is there, such as '{first}'"
        empty = f"{names.what} names nothing"
        raise InputError(f"{shown if first else empty}; {LOOKED_FOR}")


def _looked_up_first(names: _Names) -> dict[str, Place]:
    """What is at each URI of a shard, or of all; `InputError` where something is missing."""
    wanted = (
        uri
        for uri in names.uris()
        if (names.strict or shard_kind(plain_name(uri))) and not has_glob(uri)
    )
    known, missing = {}, []
    for place in looked_up(dict.fromkeys(wanted)):
        known[place.uri] = place
        if not place.is_there:
            missing.append(f"'{place.uri}'")
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(
            f"{len(missing)} of the {len(known)} {'files' if names.strict else 'shards'} that "
            f"{names.what} names are not there: {', '.join(missing[:_SHOWN])}{more}"
        )
    return known


def _places(names: _Names, known: dict[str, Place]) -> Iterator[Place]:
    """What is at each URI that is named, where that is not known yet."""
    unknown = looked_up(uri for uri in names.uris() if uri not in known)
    return (known[uri] if uri in known else next(unknown) for uri in names.uris())


class _Taken:
    """What was named so far, so that a file that is named again is taken once, and counted."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.files: set[int] = set()
        self.folders: set[str] = set()
        self.globs: list[tuple[str, Glob]] = []

    def covers(self, uri: str, *, count: bool = False) -> bool:
        """Whether `uri` was named, or lies in a folder or fits a pattern that was."""
        covered = hash(uri) in self.files or self._is_below(uri)
        if covered and count:
            self.left_out.add(NAMED_TWICE)
        return covered

    def _is_below(self, uri: str) -> bool:
        if uri in self.folders:
            return True
        above = uri
        while self.folders and (above := above.rpartition("/")[0]):
            if above in self.folders:
                return True
        return any(
            uri.startswith(f"{folder}/") and glob.fits(uri[len(folder) + 1 :])
            for folder, glob in self.globs
        )

    def once(self, place: Place, names: _Names) -> Iterator[Entry]:
        """The entries of one file, folder or pattern, without those that are taken already."""
        if not place.is_there:
            yield from self._fitting(place.uri, names)
        elif not place.is_folder:
            if not self.covers(place.uri, count=True):
                self.files.add(hash(place.uri))
                yield Entry(names.name_of(place.uri), place.size, place.etag)
        elif not self.covers(place.uri, count=True):
            yield from self._entries(place.uri, _folder_entries(place.uri, self.left_out), names)
            self.folders.add(place.uri)

    def _fitting(self, pattern: str, names: _Names) -> Iterator[Entry]:
        """What fits a pattern without braces; `InputError` if nothing does."""
        if is_web(pattern):
            raise InputError(f"'{pattern}' is a pattern; {NO_LISTING}")
        folder = literal_folder(pattern)
        glob = Glob(pattern[len(folder) + 1 :])
        fs, path = filesystem(folder or "/")
        entries = walk(fs, path, folder or "/", self.left_out, glob.may_hold)
        fitting = (entry for entry in entries if _fits(glob, entry.name))
        empty = True
        try:
            for entry in fitting:
                empty = False
                yield from self._entries(folder, iter([entry]), names)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        if empty:
            raise InputError(f"nothing fits the pattern '{pattern}'; {LOOKED_FOR}")
        self.globs.append((folder, glob))

    def _entries(self, folder: str, entries: Iterator[Entry], names: _Names) -> Iterator[Entry]:
        for entry in entries:
            uri = f"{folder.rstrip('/')}/{entry.name}"
            if not self.covers(uri.rstrip("/"), count=True):
                yield entry._replace(name=names.name_of(uri))


def _fits(glob: Glob, name: str) -> bool:
    """Whether an entry fits; a folder that cannot be listed may hold what does."""
    return glob.may_hold(name[:-1]) if name.endswith("/") else glob.fits(name)


def _folder_entries(uri: str, left_out: LeftOut) -> Iterator[Entry]:
    """What is below a folder; one that cannot be listed is an entry itself."""
    if is_local(uri) and present_state(f"{uri}/")[1] == UNREADABLE:
        return iter([Entry("", 0, UNREADABLE)])
    return _below(uri, left_out)


class _Parts(NamedTuple):
    folder: str
    name: str


def _split(uri: str) -> _Parts:
    """The folder of a file, and its name in it, with what stands behind a `?` on the web."""
    end = plain_name(uri).rfind("/")
    return _Parts(uri[:end] or "/", uri[end + 1 :])


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or "://" in name


def check_apart(given: str, output: str) -> None:
    """Raise `InputError` for an output where the input's listing would come upon its files."""
    check_beside(given, output)
    inner = canonical_uri(output)
    ways = {inner, os.path.realpath(inner)} if is_local(inner) else {inner}
    for folder, glob in _folders_of(given):
        if glob is None:
            check_beside(folder, output)
            continue
        below = [way[len(folder) + 1 :] for way in ways if way.startswith(f"{folder}/")]
        if any(glob.may_hold(name) for name in below):
            raise InputError(
                f"the output '{inner}' lies where the input '{given}' looks for images, and would "
                "be read as one: choose an output beside it"
            )


def _folders_of(given: str) -> Iterator[tuple[str, Glob | None]]:
    """The folders that an input's listing looks into, and the pattern of what it takes there.

    Those of a list are guessed by the names, as nothing is looked up but the list itself.
    """
    root = canonical_uri(given)
    try:
        kind = _kind_of(root)
    except StorageError:
        return  # told when it is listed
    if kind == "folder":
        yield root, None
    elif kind == "file" and is_list(plain_name(root)):
        for uri in _lines(read_file(root), root, _split(root)[0]):
            yield from _folder_of(uri)
    elif kind == "pattern" and count_braces(root) <= _MOST_GLOBS:
        for uri in expand_braces(root):
            yield from _folder_of(uri)


def _folder_of(uri: str) -> Iterator[tuple[str, Glob | None]]:
    if has_glob(uri):
        folder = literal_folder(uri)
        yield folder or "/", Glob(uri[len(folder) + 1 :])
    elif not shard_kind(plain_name(uri)):
        yield uri, None
