"""What an output folder holds before a job writes to it: files of its own kind, or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.buckets import bucket_and_prefix, is_bucket, listing_pages
from pipeline.storage.store import Store, is_temporary
from pipeline.storage.uris import is_local_filesystem, storage_errors

# What a mounted disk, a desktop or a file server puts into a folder by itself.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".snapshot"}
_LITTER_PREFIXES = (".nfs", ".Trash-")
PROBE_PREFIX = ".write-test-"  # of the folder in which `check_output` tries to write
# So many tell what a folder is for; a listing of all could be of a billion.
_LOOKED_AT = 64
_NAMED = 3


@dataclass(frozen=True)
class OutputKind:
    """What a job leaves in a folder, and how a folder that a run of the job has begun is told.

    `is_ours` gets the folder and the first names in it, sorted, those of folders with a slash
    behind them; it is not asked for a folder without files.
    """

    what: str  # for messages: "a table of latents"
    is_ours: Callable[[Store, Sequence[str]], bool]


def check_contents(uri: str, kind: OutputKind) -> None:
    """Raise `ConfigError` where a folder holds files, and is not one of `kind`.

    One listing request, of one level, of which the first names are read.
    """
    store = Store(uri)
    with storage_errors(f"list '{store.root}'"):
        names = first_names(store)
        if not names or kind.is_ours(store, names):
            return
    named = ", ".join(f"'{name}'" for name in names[:_NAMED])
    more = " and more" if len(names) > _NAMED else ""
    raise ConfigError(
        f"the output '{store.root}' holds {named}{more}, and is not {kind.what}: nothing is "
        f"written among other files; choose a folder that is new or empty, or {kind.what} to "
        "continue"
    )


def first_names(store: Store) -> list[str]:
    """The first names in a folder, sorted, those of folders with a slash behind them.

    What storage puts there by itself, and what a killed writer of ours leaves, is left out. A
    folder that is not there has none.
    """
    return sorted(islice(filter(_is_content, _names(store)), _LOOKED_AT))


def _names(store: Store) -> Iterator[str]:
    folder = store.path()
    if is_local_filesystem(store.fs):
        return _names_on_disk(folder)
    if is_bucket(store.fs):
        return _names_in_bucket(store.fs, folder)
    return _names_elsewhere(store.fs, folder)


def _names_on_disk(folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as children:
        for child in children:
            yield child.name + "/" * child.is_dir()


def _names_in_bucket(fs: Any, folder: str) -> Iterator[str]:
    bucket, prefix = bucket_and_prefix(fs, folder)
    with suppress(FileNotFoundError):  # no such bucket
        for page in listing_pages(fs, bucket, prefix, Delimiter="/"):
            keys = [item["Key"] for item in page.get("Contents", ())]
            keys += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            yield from (key[len(prefix) :] for key in keys)


def _names_elsewhere(fs: Any, folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError):
        for item in fs.ls(folder, detail=True):
            name = str(item["name"]).rstrip("/").rsplit("/", 1)[-1]
            yield name + "/" * (item["type"] == "directory")


def _is_content(name: str) -> bool:
    name = name.rstrip("/")
    litter = not name or name in _LITTER or name.startswith(_LITTER_PREFIXES)  # "": a folder marker
    return not litter and not is_temporary(name) and not name.startswith(PROBE_PREFIX)
