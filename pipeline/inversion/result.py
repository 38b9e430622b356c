"""Result of an inversion by any method, and the check of the tensors that methods take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ShapeError
from pipeline.models.model import RestyleModel


@dataclass(frozen=True)
class Inversion:
    """Codes and images of n faces at every step; tensors are on the model's device, floats float32.

    Steps count from 0: `w_plus[:, t]` is the code after step t, `step_images[:, t]` its image. A
    face with fewer steps than others repeats its last code and image, so that the last column is
    the result of every face.
    """

    w_plus: Tensor  # [n, steps, n_styles, 512]
    images: Tensor  # [n, 3, H, W], the last step's reconstruction, about [-1, 1]
    step_images: Tensor  # [n, steps, 3, h, w], each step's, pooled to the encoder's input size
    start: Tensor  # [n, n_styles, 512], the codes before step 0
    start_images: Tensor | None  # [n, 3, h, w], their images; None if the method does not use them
    latent_avg: Tensor  # [n_styles, 512], the model's average latent
    steps_made: Tensor  # int64 [n], 1..steps
    generator_passes: Tensor  # int64 [n], renders of this face, without the average image
    stopped: Tensor | None = None  # bool [n], whether the stop rule ended the face; None: no rule

    @property
    def steps(self) -> int:
        """Number of columns: the largest number of steps of any face."""
        return self.w_plus.shape[1]

    @property
    def finite(self) -> Tensor:
        """Mask of faces whose codes and images are finite at every step, bool [n]."""
        codes = self.w_plus.isfinite().flatten(1).all(dim=1)
        return codes & self.step_images.isfinite().flatten(1).all(dim=1)


def check_tensor(
    name: str, value: Tensor, shape: tuple[int | None, ...], model: RestyleModel
) -> Tensor:
    """Return `value` on the model's device if it is float32 of `shape`; None is any number above 0.

    Raises `ShapeError` with `name`, the actual and the expected shape.
    """
    expected = ", ".join("n" if size is None else str(size) for size in shape)
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ShapeError(f"{name}: got a {kind}, expected a torch.Tensor, float32 [{expected}]")
    fits = value.dim() == len(shape) and all(
        size == required or (required is None and size > 0)
        for size, required in zip(value.shape, shape, strict=False)
    )
    if not fits or value.dtype != torch.float32:
        actual = ", ".join(map(str, value.shape))
        dtype = str(value.dtype).removeprefix("torch.")
        raise ShapeError(f"{name}: got {dtype} [{actual}], expected float32 [{expected}]")
    return value.to(model.latent_avg.device)
