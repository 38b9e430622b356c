"""Read real codes for a discriminator from tars of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.storage.uris import join

if TYPE_CHECKING:
    from torch import Tensor

PREFIX, SUFFIX = "pairs-", ".tar"


def code_shards(uri: str) -> list[str]:
    """Return the names of the pairs-*.tar in the folder at `uri`, a path or fsspec URI.

    Raises `InputError` when there are none.
    """
    names = Store(uri).names(PREFIX)
    shards = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    if not shards:
        raise InputError(f"'{uri}' has no codes: expected {PREFIX}*{SUFFIX} in the folder")
    return shards


def read_codes(uri: str) -> Tensor:
    """Read the codes of every pair in the folder at `uri`, float32 [n, 512].

    Raises `InputError` when there are none or one file is not a tar of pairs, and `StorageError`.
    """
    # Imported here because PyTorch is slow to import and `code_shards` does not need it.
    from pipeline.training.latent_pairs import load_codes

    folder = Store(uri).root
    return load_codes([join(folder, name) for name in code_shards(uri)])
