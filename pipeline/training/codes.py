"""Real codes for a discriminator, out of tars of pairs, wherever these lie."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.storage import Store, one_line

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

    Raises `InputError` where there are none, or a tar is damaged, and `StorageError`.
    """
    # Here, as PyTorch is slow to import and the look at the names does without.
    from pipeline.training.pairs import load_codes

    store = Store(uri)
    with tempfile.TemporaryDirectory() as folder:
        shards = [Path(folder, name) for name in code_shards(uri)]
        for shard in shards:
            shard.write_bytes(store.get(shard.name))
        try:
            return load_codes(shards)
        except (tarfile.TarError, ValueError, EOFError) as error:
            why = one_line(error)
            raise InputError(f"the codes in '{uri}' are none, or damaged: {why}") from error
