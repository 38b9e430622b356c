"""Read pairs from a tar: images that a generator rendered, and their latent codes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, MissingError
from pipeline.storage.file_types import is_hidden, is_image, stem_of
from pipeline.storage.readers.npy import read_array
from pipeline.storage.readers.tar import DAMAGE, member_name, open_tar, sparse_refusal
from pipeline.storage.store import Store
from pipeline.storage.uris import one_line, storage_errors

CODE_SUFFIX = ".w.npy"
WANTED = f"a pair is <key>.jpg and <key>{CODE_SUFFIX} in one tar"
_STYLE_DIM = 512


class Pair(NamedTuple):
    """An image and its code."""

    key: str  # the path of both members without their extensions
    image: bytes  # not decoded
    code: NDArray[np.float32]  # [512] or [n_styles, 512]


def pair_tars(folder: str) -> list[str]:
    """Return the URIs of the pairs-*.tar in a folder, sorted; `InputError` if there are none."""
    store = Store(folder)
    names = [name for name in store.names("pairs-") if name.endswith(".tar") and "/" not in name]
    if not names:
        raise InputError(f"'{folder}' holds no pairs-*.tar")
    return list(map(store.uri, names))


def pair_members(uri: str) -> Iterator[Pair]:
    """Yield the pairs of the tar at `uri`, a path or fsspec URI, when both halves have been read.

    Memory holds the halves without their counterparts. Raises `InputError` if the tar is missing,
    damaged or without pairs, if a key has no image or no code, or if a code is invalid. Raises
    `StorageError` if the tar cannot be read to its end.
    """
    images: dict[str, bytes] = {}
    codes: dict[str, NDArray[np.float32]] = {}
    count = 0
    for name, content in _members(uri, with_images=True):
        if name.endswith(CODE_SUFFIX):
            key = name.removesuffix(CODE_SUFFIX)
            codes[key] = _code(content, f"{uri}/{name}")
        else:
            key = stem_of(name)
            images[key] = content
        if key in images and key in codes:
            count += 1
            yield Pair(key, images.pop(key), codes.pop(key))
    if not count:
        raise InputError(f"'{uri}' holds no pairs: {WANTED}")
    for halves, missing in ((images, "code"), (codes, "image")):
        if halves:
            first = next(iter(halves))
            raise InputError(
                f"'{first}' in '{uri}' has no {missing} ({len(halves)} such): {WANTED}; "
                "add what is missing or leave the key out"
            )


def code_members(uri: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the keys and codes of the tar at `uri`; images are optional and not read.

    Raises the errors of `pair_members`, except for missing images and codes; a tar without any code
    raises `InputError`.
    """
    empty = True
    for name, content in _members(uri, with_images=False):
        empty = False
        yield name.removesuffix(CODE_SUFFIX), _code(content, f"{uri}/{name}")
    if empty:
        raise InputError(f"'{uri}' holds no codes: {WANTED}")


def _members(uri: str, *, with_images: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the `member_name`s and contents of codes and images."""
    with _open_archive(uri) as archive:
        for member in archive:
            name = member_name(member)
            is_wanted = name.endswith(CODE_SUFFIX) or (with_images and is_image(name))
            if member.isfile() and is_wanted and not is_hidden(name):
                if refusal := sparse_refusal(member):
                    raise InputError(f"'{name}' in '{uri}' is {refusal}")
                yield name, cast(IO[bytes], archive.extractfile(member)).read()


@contextmanager
def _open_archive(uri: str) -> Iterator[tarfile.TarFile]:
    try:
        with storage_errors(f"read '{uri}'"):
            try:
                with open_tar(uri) as archive:
                    yield archive
            except DAMAGE as error:
                why = one_line(error)
                raise InputError(f"'{uri}' is no tar, or damaged: {why}; replace it") from error
    except MissingError as error:
        raise InputError(f"there is no '{uri}': pass a tar of pairs ({WANTED})") from error


def _code(content: bytes, where: str) -> NDArray[np.float32]:
    try:
        code = read_array(content)
    except ValueError as error:
        raise InputError(f"'{where}' is not a numpy array: {one_line(error)}") from error
    if code.dtype.kind != "f" or code.ndim not in (1, 2) or code.shape[-1] != _STYLE_DIM:
        raise InputError(
            f"'{where}' is {code.dtype} {list(code.shape)}, not a code [512] or [n_styles, 512]"
        )
    return np.asarray(code, np.float32)
