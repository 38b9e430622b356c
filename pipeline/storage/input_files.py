"""Resolve an input (a folder, a file, a text file of URIs or a pattern) to the files it names."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import InputError, MissingError, StorageError
from pipeline.storage.file_types import is_list, plain_name, shard_kind, shard_stem
from pipeline.storage.left_out import NAMED_TWICE, LeftOut
from pipeline.storage.listing import Entry, Place, file_entry, is_folder, look_up_all, walk
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
from pipeline.storage.uris import canonical_uri, filesystem, is_local, is_web, join, read_file

LOOKED_FOR = (
    "looked for .tar, .tar.gz (.bz2, .xz, .zst), .zip and .parquet shards, and for image files, "
    "at any depth"
)
NO_LISTING = (
    "a web server lists no folders: name its files in a text file, one URI per line, or by a range "
    "such as {00000..00127}.tar"
)
_MAX_NAMES = 1_000_000  # expansions of the braces in one name
_MAX_GLOBS = 1000  # expansions of braces that hold `*`, `?` or `[`: each needs its own listing
_MAX_SHOWN_COUNT = 10**30  # in messages: Python formats no number of over 4300 digits
_MAX_KEY_LENGTH = 1024  # of an object in a bucket
_SLASHES_OF_A_FILE = 3  # https://host/file
_MAX_SHOWN_NAMES = 3  # of missing shards, in a message


@dataclass(frozen=True)
class Source:
    """Files of an input, as entries in the input's order.

    For `kind="folder"` the names are relative to `uri`. For `kind="list"`, where `uri` is a text
    file, they are relative to the folder of that file, or URIs. `alone` says that the input is one
    file.
    """

    kind: Literal["folder", "list"]
    uri: str
    entries: Iterator[Entry]
    alone: bool = False

    def uri_of(self, name: str) -> str:
        """Return the URI of the file `name`."""
        return uri_in(self.kind, self.uri, name)


def uri_in(kind: str, uri: str, name: str) -> str:
    """Return the URI of the file `name` of a `Source` of this `kind` at `uri`."""
    if kind != "list":
        return join(uri, name)
    return name if _is_absolute(name) else join(_split(uri)[0], name)


def open_input(root: str, left_out: LeftOut) -> Source:
    """Open the input `root`, a `canonical_uri`; its files are listed while entries are consumed.

    A name that exists as written is not treated as a pattern. Files that are not read are counted
    in `left_out`. Raises `InputError` if the input is missing or a pattern matches nothing, also
    while entries are consumed.
    """
    if is_web(root) and root.count("/") < _SLASHES_OF_A_FILE:
        raise InputError(f"'{root}' names no file; {NO_LISTING}")
    try:
        kind = _kind_of(root)
    except MissingError as error:
        raise InputError(f"the input '{root}' does not exist; {LOOKED_FOR}") from error
    if kind == "pattern":
        return _open_pattern(root, left_out)
    if kind == "folder":
        return Source("folder", root, _below(root, left_out))
    if is_list(plain_name(root)):
        return _open_list(root, left_out)
    folder, name = _split(root)
    return Source("folder", folder, iter([file_entry(root)._replace(name=name)]), alone=True)


def _kind_of(root: str) -> Literal["folder", "file", "pattern"]:
    fs, path = filesystem(root)
    special = has_braces(root) or has_glob(root)
    if is_local(root):
        unnamable = not os.path.lexists(path)
    else:
        unnamable = len(path) > _MAX_KEY_LENGTH or not literal_folder(root)
    if special and unnamable:
        return "pattern"
    try:
        return "folder" if is_folder(fs, path, root) else "file"
    except MissingError:
        if special:
            return "pattern"
        raise


def _below(folder: str, left_out: LeftOut) -> Iterator[Entry]:
    fs, path = filesystem(folder)
    return _mark_beside_tars(walk(fs, path, folder, left_out))


def _mark_beside_tars(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Set `beside_tar` of each `x.parquet` that has an `x.tar` beside it in the sorted `entries`.

    The order changes: a Parquet file comes after all names that its tar may have, but before the
    files of a folder `x`.
    """
    waiting: Entry | None = None
    for entry in entries:
        kind = shard_kind(entry.name)
        if waiting:
            stem = shard_stem(waiting.name)
            if kind == "tar" and shard_stem(entry.name) == stem:
                waiting = waiting._replace(beside_tar=True)
            elif kind == "parquet" or entry.name > f"{stem}/":
                yield waiting
                waiting = None
        if kind == "parquet":
            waiting = entry
        else:
            yield entry
    if waiting:
        yield waiting


def _open_pattern(root: str, left_out: LeftOut) -> Source:
    """Return the files that fit a pattern, with names relative to the folder before it."""
    folder = literal_folder(root) or ("/" if is_local(root) else "")
    if not folder:
        raise InputError(
            f"the bucket or host of '{root}' is part of the pattern: name the folders or files in "
            "a text file, one URI per line, and pass that file"
        )
    _check_count(root)
    begin = len(folder.rstrip("/")) + 1
    names = _Names(
        lambda: expand_braces(root), f"the pattern '{root}'", lambda uri: uri[begin:], strict=True
    )
    return Source("folder", folder, _named(names, left_out))


def _check_count(pattern: str) -> None:
    count = count_braces(pattern)
    limit = _MAX_GLOBS if has_glob(pattern) else _MAX_NAMES
    if count > limit:
        kind = "patterns" if has_glob(pattern) else "names"
        short = pattern if len(pattern) <= _MAX_KEY_LENGTH else f"{pattern[:_MAX_KEY_LENGTH]}..."
        number = f"{count:,}" if count <= _MAX_SHOWN_COUNT else f"over {_MAX_SHOWN_COUNT:,}"
        raise InputError(
            f"'{short}' expands to {number} {kind}, more than the {limit:,} allowed: shorten its "
            "ranges"
        )


def _open_list(uri: str, left_out: LeftOut) -> Source:
    """Return the files that the lines of a text file name."""
    content, folder = read_file(uri), _split(uri)[0]

    def name_of(item: str) -> str:
        name = item.removeprefix(f"{folder.rstrip('/')}/")
        return item if _is_absolute(name) else name

    names = _Names(lambda: _lines(content, uri, folder), f"the list '{uri}'", name_of)
    return Source("list", uri, _named(names, left_out))


def _lines(content: bytes, uri: str, folder: str) -> Iterator[str]:
    """Yield the URIs that a text file names; relative paths are relative to its folder."""
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
        raise InputError(f"'{uri}' is a list, and a list may not name lists; {LOOKED_FOR}")
    _check_count(uri)


@dataclass(frozen=True)
class _Names:
    """URIs (files, folders, patterns) that an input names, and their names in its shards."""

    uris: Callable[[], Iterator[str]]
    what: str  # for messages: "the pattern 'x'"
    name_of: Callable[[str], str]
    strict: bool = False  # a missing image is an error, not a reject


def _named(names: _Names, left_out: LeftOut) -> Iterator[Entry]:
    """Yield the entries of all named files once, in the order in which they are named.

    Files that must exist are looked up first, so that a missing one is reported before any work.
    Another missing file becomes an unreadable entry. Raises `InputError` if a file that must exist
    is missing, or if all files are.
    """
    required = _look_up_required(names)
    taken, missing = _Taken(left_out), list[Entry]()
    any_exists = False
    for place in _places(names, required):
        if place.exists or has_glob(place.uri):
            any_exists = True
            yield from missing
            missing = []
            yield from taken.once(place, names)
        elif not taken.repeats(place.uri):
            taken.files.add(hash(place.uri))
            missing.append(Entry(names.name_of(place.uri), 0, UNREADABLE))
            if any_exists:
                yield missing.pop()
    if not any_exists:
        first = next(names.uris(), None)
        all_missing = f"none of the files that {names.what} names exists, such as '{first}'"
        empty = f"{names.what} names no files"
        raise InputError(f"{all_missing if first else empty}; {LOOKED_FOR}")


def _look_up_required(names: _Names) -> dict[str, Place]:
    """Look up the URIs that must exist: shards, or all if `names` is strict.

    Raises `InputError` if one is missing.
    """
    required = (
        uri
        for uri in names.uris()
        if (names.strict or shard_kind(plain_name(uri))) and not has_glob(uri)
    )
    places = {place.uri: place for place in look_up_all(dict.fromkeys(required))}
    missing = [f"'{uri}'" for uri, place in places.items() if not place.exists]
    if missing:
        others = len(missing) - _MAX_SHOWN_NAMES
        more = f" and {others} more" if others > 0 else ""
        raise InputError(
            f"{len(missing)} of the {len(places)} {'files' if names.strict else 'shards'} that "
            f"{names.what} names do not exist: {', '.join(missing[:_MAX_SHOWN_NAMES])}{more}"
        )
    return places


def _places(names: _Names, required: dict[str, Place]) -> Iterator[Place]:
    """Yield what is at each named URI, looking up those that are not in `required`."""
    others = look_up_all(uri for uri in names.uris() if uri not in required)
    return (required[uri] if uri in required else next(others) for uri in names.uris())


class _Taken:
    """Files, folders and patterns listed so far: a file named again is counted, not listed."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.files: set[int] = set()
        self.folders: set[str] = set()
        self.globs: list[tuple[str, Glob]] = []

    def repeats(self, uri: str) -> bool:
        """Return whether `uri` is listed already, by itself or by its folder or a pattern.

        It is then counted as named twice.
        """
        is_listed = hash(uri) in self.files or self._is_below(uri)
        if is_listed:
            self.left_out.add(NAMED_TWICE)
        return is_listed

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
        """Yield the entries of one file, folder or pattern that are not listed yet."""
        if not place.exists:
            yield from self._fitting(place.uri, names)
        elif self.repeats(place.uri):
            return
        elif place.is_folder:
            yield from self._entries(place.uri, _folder_entries(place.uri, self.left_out), names)
            self.folders.add(place.uri)
        else:
            self.files.add(hash(place.uri))
            yield Entry(names.name_of(place.uri), place.size, place.etag)

    def _fitting(self, pattern: str, names: _Names) -> Iterator[Entry]:
        """Yield the entries that fit a pattern without braces; `InputError` if none does."""
        if is_web(pattern):
            raise InputError(f"'{pattern}' is a pattern; {NO_LISTING}")
        folder = literal_folder(pattern)
        glob = Glob(pattern[len(folder) + 1 :])
        fs, path = filesystem(folder or "/")
        entries = walk(fs, path, folder or "/", self.left_out, glob.may_hold)
        fitting = (entry for entry in entries if _fits(glob, entry.name))
        empty = True
        with suppress(MissingError):
            for entry in fitting:
                empty = False
                yield from self._entries(folder, iter([entry]), names)
        if empty:
            raise InputError(f"nothing fits the pattern '{pattern}'; {LOOKED_FOR}")
        self.globs.append((folder, glob))

    def _entries(self, folder: str, entries: Iterator[Entry], names: _Names) -> Iterator[Entry]:
        for entry in entries:
            uri = f"{folder.rstrip('/')}/{entry.name}"
            if not self.repeats(uri.rstrip("/")):
                yield entry._replace(name=names.name_of(uri))


def _fits(glob: Glob, name: str) -> bool:
    """Return whether an entry fits; an unreadable folder does if it may hold files that fit."""
    return glob.may_hold(name[:-1]) if name.endswith("/") else glob.fits(name)


def _folder_entries(uri: str, left_out: LeftOut) -> Iterator[Entry]:
    """Yield the entries below a folder; a folder that cannot be listed is one entry itself."""
    if is_local(uri) and present_state(f"{uri}/")[1] == UNREADABLE:
        return iter([Entry("", 0, UNREADABLE)])
    return _below(uri, left_out)


def _split(uri: str) -> tuple[str, str]:
    """Split a URI into its folder and the name in it, which includes the query of a web address."""
    end = plain_name(uri).rfind("/")
    return uri[:end] or "/", uri[end + 1 :]


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or "://" in name


def check_apart(given: str, output: str) -> None:
    """Raise `InputError` if the listing of the input `given` would find files of `output`."""
    check_beside(given, output)
    inner = canonical_uri(output)
    paths = {inner, os.path.realpath(inner)} if is_local(inner) else {inner}
    for folder, glob in _folders_of(given):
        if glob is None:
            check_beside(folder, output)
            continue
        below = [path[len(folder) + 1 :] for path in paths if path.startswith(f"{folder}/")]
        if any(glob.may_hold(name) for name in below):
            raise InputError(
                f"the output '{inner}' lies where the input '{given}' looks for images, and would "
                "be read as one: choose an output beside it"
            )


def _folders_of(given: str) -> Iterator[tuple[str, Glob | None]]:
    """Yield the folders that the listing of an input reads, each with its pattern or None.

    The folders of a list are derived from its lines: nothing but the list itself is read.
    """
    root = canonical_uri(given)
    try:
        kind = _kind_of(root)
    except StorageError:
        return  # the listing reports it
    if kind == "folder":
        yield root, None
    elif kind == "file" and is_list(plain_name(root)):
        for uri in _lines(read_file(root), root, _split(root)[0]):
            yield from _folder_of(uri)
    elif kind == "pattern" and count_braces(root) <= _MAX_GLOBS:
        for uri in expand_braces(root):
            yield from _folder_of(uri)


def _folder_of(uri: str) -> Iterator[tuple[str, Glob | None]]:
    if has_glob(uri):
        folder = literal_folder(uri)
        yield folder or "/", Glob(uri[len(folder) + 1 :])
    elif not shard_kind(plain_name(uri)):
        yield uri, None
