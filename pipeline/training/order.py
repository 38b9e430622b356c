"""Which samples each batch holds: a function of the seed and the batch's number alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def random_batches(
    count: int,
    batch: int,
    seed: int,
    first: int = 0,
    shuffled: Callable[[torch.Generator], Tensor] | None = None,  # default: all samples alike
) -> Iterator[Tensor]:
    """Index tensors [batch] from batch `first` on; each epoch in a fresh order, its rest left out.

    Raises `ValueError` where there are fewer than `batch` samples.
    """
    per_epoch = count // batch
    if not per_epoch:
        raise ValueError(f"{count} samples do not fill a batch of {batch}")
    epochs, skip = divmod(first, per_epoch)
    for epoch in itertools.count(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        order = shuffled(generator) if shuffled else torch.randperm(count, generator=generator)
        yield from order[skip * batch : per_epoch * batch].split(batch)
        skip = 0
