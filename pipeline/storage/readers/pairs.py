"""Pairs out of a tar: images that a generator rendered, and the codes that they come from."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, StorageError
from pipeline.storage.file_types import is_hidden, readable_name
from pipeline.storage.readers.npy import read_array
from pipeline.storage.readers.tar import DAMAGE, is_sample, open_tar, sparse_refusal
from pipeline.storage.uris import one_line, storage_errors

CODE_SUFFIX = ".w.npy"
WANTED = f"a pair is <key>.jpg and <key>{CODE_SUFFIX} in one tar"
_STYLE_DIM = 512


class Pair(NamedTuple):
    """An image and its code."""

    key: str  # the members' path without their extensions, as samples have it
    image: bytes  # not decoded
    code: NDArray[np.float32]  # [512] or [n_styles, 512]


def pair_members(uri: str) -> Iterator[Pair]:
    """The pairs of the tar at `uri`, a path or fsspec URI, each when both halves have been read.

    Memory holds the halves that wait for their other. Raises `InputError` where there is no tar, it
    is damaged or holds no pair, or where a key has no image or no code, or one that is none, and
    `StorageError` where the tar cannot be read to its end.
    """
    images: dict[str, bytes] = {}
    codes: dict[str, NDArray[np.float32]] = {}
    count = 0
    for name, content in _members(uri, with_images=True):
        if name.endswith(CODE_SUFFIX):
            key = name.removesuffix(CODE_SUFFIX)
            codes[key] = _code(content, f"{uri}/{name}")
        else:
            key = name[: -len(PurePosixPath(name).suffix)]
            images[key] = content
        if key in images and key in codes:
            count += 1
            yield Pair(key, images.pop(key), codes.pop(key))
    if not count:
        raise InputError(f"'{uri}' holds no pairs: {WANTED}")
    for alone, other in ((images, "code"), (codes, "image")):
        if alone:
            raise InputError(
                f"'{next(iter(alone))}' in '{uri}' has no {other} ({len(alone)} such): {WANTED}; "
                "add what is missing or leave the key out"
            )


def code_members(uri: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Keys and codes of the tar at `uri`, with images or without, which are not read.

    Raises as `pair_members` does, but for images that are missing, and for codes only if all are.
    """
    empty = True
    for name, content in _members(uri, with_images=False):
        empty = False
        yield name.removesuffix(CODE_SUFFIX), _code(content, f"{uri}/{name}")
    if empty:
        raise InputError(f"'{uri}' holds no codes: {WANTED}")


def _members(uri: str, *, with_images: bool) -> Iterator[tuple[str, bytes]]:
    """Names and contents of codes and images; `readable_name`s without a leading "./"."""
    with _opened(uri) as archive:
        for member in archive:
            name = readable_name(member.name.removeprefix("./"))
            is_code = name.endswith(CODE_SUFFIX) and not is_hidden(name)
            if member.isfile() and (is_code or (with_images and is_sample(member))):
                if refusal := sparse_refusal(member):
                    raise InputError(f"'{name}' in '{uri}' is {refusal}")
                yield name, cast(IO[bytes], archive.extractfile(member)).read()


@contextmanager
def _opened(uri: str) -> Iterator[tarfile.TarFile]:
    try:
        with storage_errors(f"read '{uri}'"):
            try:
                with open_tar(uri) as archive:
                    yield archive
            except DAMAGE as error:
                why = one_line(error)
                raise InputError(f"'{uri}' is no tar, or damaged: {why}; replace it") from error
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputError(f"there is no '{uri}': pass a tar of pairs ({WANTED})") from error
        raise


def _code(content: bytes, where: str) -> NDArray[np.float32]:
    try:
        code = read_array(content)
    except ValueError as error:
        raise InputError(f"'{where}' is no array: {one_line(error)}") from error
    if code.dtype.kind != "f" or code.ndim not in (1, 2) or code.shape[-1] != _STYLE_DIM:
        raise InputError(
            f"'{where}' is {code.dtype} {list(code.shape)}, not a code [512] or [n_styles, 512]"
        )
    return np.asarray(code, np.float32)
