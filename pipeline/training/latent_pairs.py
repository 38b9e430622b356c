"""Read (w, image) pairs from tar shards: the training data of the demo generator."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models.pixels import from_levels
from pipeline.storage import one_line
from pipeline.storage.readers.pairs import code_members, pair_members


@dataclass(frozen=True)
class LatentPairs:
    """W codes, the images rendered from them, and other images that a generator is to render."""

    w: Tensor  # float32 [n, 512]
    images: Tensor  # uint8 [n, 3, size, size]
    targets: Tensor | None = None  # uint8 [n, 3, s, s]; None: `images`

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, part: slice) -> LatentPairs:
        targets = None if self.targets is None else self.targets[part]
        return LatentPairs(self.w[part], self.images[part], targets)

    @property
    def rendered(self) -> Tensor:
        """Images that a generator is to render."""
        return self.images if self.targets is None else self.targets

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [b, 512] and images to render, [b, 3, s, s] in [-1, 1], at `index` [b]."""
        return self.w[index], from_levels(self.rendered[index])

    def split(self, held_out: int) -> tuple[LatentPairs, LatentPairs]:
        """Return all but the last `held_out` pairs, and the last `held_out`."""
        edge = len(self) - held_out
        return self[:edge], self[edge:]


def load_pairs(shards: Sequence[str | Path], size: int) -> LatentPairs:
    """Read every pair of `shards`, images reduced to `size` pixels by exact block means.

    A shard is the path or fsspec URI of a tar with `<key>.jpg` and `<key>.w.npy` (float16 [512]).
    The pairs of a shard are in the order of their keys. Raises `InputError` when one is not a tar
    of pairs, and `StorageError`.
    """
    codes: list[NDArray[np.float32]] = []
    images: list[NDArray[np.uint8]] = []
    for shard in map(str, shards):
        by_key = {
            key: (_w(key, code, shard), _reduced(image, size, f"'{key}' in '{shard}'"))
            for key, image, code in pair_members(shard)
        }
        for key in sorted(by_key):
            codes.append(by_key[key][0])
            images.append(by_key[key][1])
    return LatentPairs(torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(images)))


def load_codes(shards: Sequence[str | Path]) -> Tensor:
    """Read only the codes of `shards`, float32 [n, 512], in the order of the tars.

    They are the real w of a discriminator. Raises as `load_pairs` does, but needs no images.
    """
    codes = [
        _w(key, code, shard) for shard in map(str, shards) for key, code in code_members(shard)
    ]
    return torch.from_numpy(np.stack(codes))


def _w(key: str, code: NDArray[np.float32], shard: str) -> NDArray[np.float32]:
    if code.ndim != 1:
        raise InputError(
            f"the code of '{key}' in '{shard}' is {list(code.shape)}: training needs W codes, [512]"
        )
    return code


def _reduced(content: bytes, size: int, where: str) -> NDArray[np.uint8]:
    """Decode an image file and reduce it to [3, size, size]; `where` names it in errors."""
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # of Pillow
        raise InputError(f"the image of {where} cannot be read: {one_line(error)}") from error
    small = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1)
