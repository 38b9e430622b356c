"""The types of the fields that are carried over, which the first shard of an input decides."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.storage.kept import TEXT
from pipeline.storage.parquets import column_types
from pipeline.storage.shards import Shard
from pipeline.storage.zips import LABEL, labels_of


def kept_types(first: Shard, names: Sequence[str]) -> dict[str, str]:
    """The type of each of the fields `names` in the table, by the input's first shard.

    Of a Parquet file those of its columns; of StyleGAN's `dataset.zip` its label is an integer if
    all of them are. What stands in sidecars is text. Raises `InputError` for a field that the shard
    is known not to have, and `StorageError` where it cannot be read.
    """
    if first.kind == "parquet":
        return dict.fromkeys(names, TEXT) | column_types(first, names)
    types = dict.fromkeys(names, TEXT)
    if first.kind == "zip" and LABEL in types:
        labels = labels_of(first)
        if labels and all(type(label) is int for label in labels.values()):
            types[LABEL] = str(pa.int64())
        elif not labels and len(types) == 1:
            raise InputError(
                f"--keep-columns: '{first.source}' has no labels: its dataset.json is missing or "
                "names none"
            )
    return types
