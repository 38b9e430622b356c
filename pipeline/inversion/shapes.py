"""What the methods of this room take: tensors of one shape and dtype, on the model's device."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ShapeError
from pipeline.models.model import RestyleModel


def of_shape(
    what: str, given: Tensor, shape: tuple[int | None, ...], model: RestyleModel
) -> Tensor:
    """`given` on the model's device, if it is float32 of `shape` (None: any number above 0).

    Raises `ShapeError` naming `what`, what it is and what it should be.
    """
    wanted = ", ".join("n" if size is None else str(size) for size in shape)
    if not isinstance(given, Tensor):
        kind = type(given).__name__
        raise ShapeError(f"{what}: got a {kind}, expected a torch.Tensor, float32 [{wanted}]")
    fits = given.dim() == len(shape) and all(
        size == asked or (asked is None and size > 0)
        for size, asked in zip(given.shape, shape, strict=False)
    )
    if not fits or given.dtype != torch.float32:
        got = ", ".join(map(str, given.shape))
        dtype = str(given.dtype).removeprefix("torch.")
        raise ShapeError(f"{what}: got {dtype} [{got}], expected float32 [{wanted}]")
    return given.to(model.latent_avg.device)
