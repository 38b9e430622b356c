"""Unit vectors of a table's faces, by which a search compares them, streamed in blocks.

The similarity of two faces is the product of their vectors, -1..1. By `identity` it is the cosine
of the vectors that the identity network gave. By `w_plus` it is the mean, over the rows of the
codes, of the cosines between the rows' differences to the model's average latent: of the distances
of codes that were tried on photos this one finds the same person most often (README.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.choices import SearchBy
from pipeline.errors import RequestError
from pipeline.search.requests import check_by
from pipeline.table.model_lookup import model_of
from pipeline.table.reader import Table, UnknownImageError
from pipeline.table.schema import IDENTITY, STYLE_DIM
from pipeline.table.selection import Selection

# Numbers in a block of vectors: 16 MiB.
BLOCK_NUMBERS = 1 << 22
# Vectors up to this size stay in memory when they are read more than once.
HELD_BYTES = 1 << 30
_READ_ROWS = 2048
_SHOWN = 5


class Block(NamedTuple):
    """Consecutive faces of a selection: n ids, and float32 vectors [n, d] of unit length."""

    ids: pa.Array
    vectors: Tensor


@dataclass
class Vectors:
    """Vectors of the faces of `selection`, by `identity` or `w_plus`.

    Faces without a vector (no identity was found) are left out; `missing` counts them after the
    first complete pass. Vectors of up to `held_bytes` are read once, more are read in every pass.
    By `w_plus` the table's model is loaded for its average latent.
    """

    selection: Selection
    by: SearchBy
    device: str = "cpu"
    held_bytes: int = HELD_BYTES
    faces: int = 0  # with a vector; like `missing` known after the first complete pass
    missing: int = 0
    _average: Tensor | None = None  # [n_styles, 512]
    _held: list[Block] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_by(self.table, self.by)
        if self.by == "w_plus":
            self._average = model_of(self.table).latent_avg.detach().float()

    @property
    def table(self) -> Table:
        """Return the table of the selection."""
        return self.selection.table

    def blocks(self) -> Iterator[Block]:
        """Yield all vectors in the order of the selection, in blocks of about 16 MiB."""
        if self._held is not None:
            yield from self._held
            return
        held: list[Block] | None = []
        missing: list[int] = []
        size = faces = 0
        for block in self._read(missing):
            yield block
            faces += len(block.ids)
            size += block.vectors.nbytes
            held = [*held, block] if held is not None and size <= self.held_bytes else None
        self._held, self.faces, self.missing = held, faces, sum(missing)

    def of_ids(self, ids: Sequence[str]) -> Tensor:
        """Return the vectors of faces of the table, selected or not, float32 [n, d].

        Raises `UnknownImageError` for ids that the table does not have, and `RequestError` for
        faces without an identity.
        """
        if self.by == "w_plus":
            return self.of_codes(torch.from_numpy(self.table.w_plus(ids)))
        rows = _rows_of(self.table, ids, f"image_id, {IDENTITY}")
        by_id = dict(zip(rows["image_id"].to_pylist(), rows[IDENTITY].to_pylist(), strict=True))
        if unknown := [name for name in ids if name not in by_id]:
            raise UnknownImageError(
                f"the table '{self.table.store.root}' has no {_listed(unknown)}"
            )
        if empty := [name for name in ids if by_id[name] is None]:
            raise RequestError(
                f"no identity of {_listed(empty)}: no face was found in the crop; "
                "search --by w_plus"
            )
        return self.of_identities(np.array([by_id[name] for name in ids], np.float32))

    def of_codes(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes [n, n_styles, 512]: differences to the average, by row."""
        if self._average is None or codes.shape[1:] != self._average.shape:
            raise RequestError("the codes do not fit the table's model")
        rows = F.normalize(codes.float() - self._average, dim=-1).flatten(1)
        scaled: Tensor = rows / codes.shape[1] ** 0.5
        return scaled.to(self.device)

    def of_identities(self, identities: Any) -> Tensor:
        """Return the vectors of identities [n, d]: of unit length again after rounding."""
        if not isinstance(identities, Tensor):
            # A copy: Arrow's arrays cannot be written, which PyTorch warns about.
            identities = torch.from_numpy(np.array(identities, np.float32))
        return F.normalize(identities.float()).to(self.device)

    def _read(self, missing: list[int]) -> Iterator[Block]:
        waiting: list[Block] = []
        numbers = 0
        for part in self._parts(missing):
            waiting.append(part)
            numbers += part.vectors.numel()
            if numbers >= BLOCK_NUMBERS:
                yield _joined(waiting)
                waiting, numbers = [], 0
        if waiting:
            yield _joined(waiting)

    def _parts(self, missing: list[int]) -> Iterator[Block]:
        """Yield the vectors as they are read; append how many faces of a batch have none."""
        dimensions = STYLE_DIM if self._average is None else self._average.numel()
        rows = max(1, min(_READ_ROWS, BLOCK_NUMBERS // dimensions))
        if self.by == "w_plus":
            for batch, codes in self.selection.code_batches(rows):
                yield Block(batch.column(0), self.of_codes(torch.tensor(codes)))
            return
        for batch in self.selection.batches(f"image_id, {IDENTITY}", rows):
            ids, values = batch.columns
            missing.append(values.null_count)
            ids, values = ids.filter(values.is_valid()), values.drop_null()
            if len(values):
                flat = values.flatten().to_numpy(zero_copy_only=False)
                yield Block(ids, self.of_identities(flat.reshape(len(values), -1)))


def known_ids(table: Table, names: Sequence[str]) -> set[str]:
    """Return those of `names` that are image ids of the table."""
    return set(_rows_of(table, names, "image_id")["image_id"].to_pylist())


def _rows_of(table: Table, ids: Sequence[str], columns: str) -> pa.Table:
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(set(ids)))
    return table.arrow(f"SELECT {columns} FROM latents WHERE image_id IN ({listed or 'NULL'})")


def _joined(blocks: list[Block]) -> Block:
    ids = pa.concat_arrays([block.ids for block in blocks])
    return Block(ids, torch.cat([block.vectors for block in blocks]))


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in ids[:_SHOWN]) + more
