"""(w, image) pairs from tar shards: what the demo generator is fitted to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """W codes and the images that they were rendered to."""

    w: Tensor  # float32 [n, 512]
    images: Tensor  # uint8 [n, 3, size, size]

    def __len__(self) -> int:
        return len(self.w)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [b, 512] and images [b, 3, size, size] in [-1, 1] at `index` [b]."""
        return self.w[index], to_unit(self.images[index])

    def split(self, held_out: int) -> tuple[Pairs, Pairs]:
        """All but the last `held_out` pairs, and these."""
        edge = len(self) - held_out
        return Pairs(self.w[:edge], self.images[:edge]), Pairs(self.w[edge:], self.images[edge:])


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return pixels.float().div(127.5).sub(1)


def _read_shard(path: Path, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    codes: dict[str, np.ndarray] = {}
    images: dict[str, np.ndarray] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            key, _, kind = member.name.partition(".")
            if kind == "w.npy":
                codes[key] = np.load(io.BytesIO(content.read()), allow_pickle=False)
            elif kind == "jpg":
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                small = image.resize((size, size), Image.Resampling.BOX)
                images[key] = np.asarray(small).transpose(2, 0, 1)
    keys = sorted(codes.keys() & images.keys())
    return [codes[key] for key in keys], [images[key] for key in keys]


def load_pairs(shards: Sequence[Path], size: int) -> Pairs:
    """Read every pair of `shards`, images reduced to `size` pixels by exact block means.

    A shard is a tar of `<key>.jpg` and `<key>.w.npy` (float16 [512]). Raises `FileNotFoundError`
    when there is none.
    """
    if not shards:
        raise FileNotFoundError("no pair shards: pass the folder that holds pairs-*.tar")
    codes: list[np.ndarray] = []
    images: list[np.ndarray] = []
    for shard in shards:
        more_codes, more_images = _read_shard(shard, size)
        codes += more_codes
        images += more_images
    w = torch.from_numpy(np.stack(codes).astype(np.float32))
    return Pairs(w, torch.from_numpy(np.stack(images)))


def load_codes(shards: Sequence[Path]) -> Tensor:
    """The codes alone of every pair of `shards`, float32 [n, 512]; real w for a discriminator.

    Raises `FileNotFoundError` when there is none.
    """
    if not shards:
        raise FileNotFoundError("no pair shards: pass the folder that holds pairs-*.tar")
    codes = [
        np.load(io.BytesIO(content.read()), allow_pickle=False)
        for shard in shards
        for content in _members(shard, ".w.npy")
    ]
    return torch.from_numpy(np.stack(codes).astype(np.float32))


def _members(shard: Path, suffix: str) -> Iterator[IO[bytes]]:
    with tarfile.open(shard) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(suffix) else None
            if content is not None:
                yield content
