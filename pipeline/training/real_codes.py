"""Real codes for a discriminator, out of tars of pairs, wherever these lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.storage.uris import join

if TYPE_CHECKING:
    from torch import Tensor

PREFIX, SUFFIX = "pairs-", ".tar"


def code_shards(uri: str) -> list[str]:
    """Names of the pairs-*.tar in the folder at `uri`, a path or fsspec URI.

    Raises `InputError` where there is none.
    """
    names = Store(uri).names(PREFIX)
    found = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    if not found:
        raise InputError(f"'{uri}' holds no codes: looked for {PREFIX}*{SUFFIX} in the folder")
    return found


def read_codes(uri: str) -> Tensor:
    """The codes of every pair in the folder at `uri`, float32 [n, 512].

    Raises `InputError` where there are none, or one is no tar of pairs, and `StorageError`.
    """
    # Here, as PyTorch is slow to import and the look at the names does without.
    from pipeline.training.latent_pairs import load_codes

    folder = Store(uri).root
    return load_codes([join(folder, name) for name in code_shards(uri)])
