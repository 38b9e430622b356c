"""What every method of this room returns: the codes and images of all steps, and their cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inversion:
    """What a method found for n faces; all tensors on the model's device, floats are float32.

    Steps count from 0; `w_plus[:, t]` is the code after step t and `step_images[:, t]` its image.
    A face that made fewer steps than others repeats its last code and image to the end, so that
    the last column is every face's result.
    """

    w_plus: Tensor  # [n, steps, n_styles, 512]
    images: Tensor  # [n, 3, H, W], the last step's reconstruction, about [-1, 1]
    step_images: Tensor  # [n, steps, 3, h, w], each step's, pooled to the encoder's input size
    start: Tensor  # [n, n_styles, 512], the codes before step 0
    start_images: Tensor | None  # [n, 3, h, w], their images; None where no method looked at them
    latent_avg: Tensor  # [n_styles, 512], the model's average latent
    steps_made: Tensor  # int64 [n], 1..steps
    generator_passes: Tensor  # int64 [n], renders of this face; the average image is nobody's
    stopped: Tensor | None = None  # bool [n], the stop rule held in the end; None: no rule

    @property
    def steps(self) -> int:
        """Number of columns: the most steps that a face made."""
        return self.w_plus.shape[1]

    @property
    def residuals(self) -> Tensor:
        """What each step added to the code before it, [n, steps, n_styles, 512]."""
        before = torch.cat([self.start[:, None], self.w_plus[:, :-1]], dim=1)
        return self.w_plus - before

    @property
    def finite(self) -> Tensor:
        """Which faces have finite codes and images at every step, bool [n]."""
        codes = self.w_plus.isfinite().flatten(1).all(dim=1)
        return codes & self.step_images.isfinite().flatten(1).all(dim=1)

    def of(self, faces: Tensor) -> Inversion:
        """These faces alone (int64 [k], at least one), with the steps that they made at most.

        Metrics of every step cost least where faces with equally many steps are measured together.
        """
        steps = int(self.steps_made[faces].max())
        return replace(
            self,
            w_plus=self.w_plus[faces, :steps],
            images=self.images[faces],
            step_images=self.step_images[faces, :steps],
            start=self.start[faces],
            start_images=None if self.start_images is None else self.start_images[faces],
            steps_made=self.steps_made[faces],
            generator_passes=self.generator_passes[faces],
            stopped=None if self.stopped is None else self.stopped[faces],
        )
