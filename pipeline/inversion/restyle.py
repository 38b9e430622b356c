"""The ReStyle loop (Alaluf et al. 2021, sec. 3.2): codes refined by residual steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError, ShapeError
from pipeline.inversion.rendering import average_image, pooled, render_each
from pipeline.models.restyle import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

ENCODER_BATCH = 16  # faces the encoder sees at once on a CPU; bounds its activations to 1 GB


@dataclass(frozen=True)
class Inversion:
    """What `invert` found for n faces; all tensors on the model's device, float32.

    Steps count from 0; `w_plus[:, t]` is the code after step t and `step_images[:, t]` its image.
    """

    w_plus: Tensor  # [n, steps, n_styles, 512]
    images: Tensor  # [n, 3, H, W], the last step's reconstruction, about [-1, 1]
    step_images: Tensor  # [n, steps, 3, h, w], each step's, pooled to the encoder's input size
    start: Tensor  # [n, n_styles, 512], the codes before step 0
    latent_avg: Tensor  # [n_styles, 512], the model's average latent

    @property
    def steps(self) -> int:
        """Number of steps made."""
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


@torch.no_grad()
def invert(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *model.input_size] in [-1, 1]
    *,
    steps: int = 5,
    start: Tensor | None = None,
    start_images: Tensor | None = None,
) -> Inversion:
    """Refine W+ codes for `images` in `steps` residual steps (ReStyle, sec. 3.2).

    The first step starts from the average latent, or from `start` [n, n_styles, 512] and
    `start_images` [n, 3, *input_size] (default: what the generator makes of `start`). A model with
    a one-pass encoder makes one step. A face's result does not depend on the others beyond
    rounding. Non-finite results are not raised but marked in `Inversion.finite`.

    Raises `ShapeError` if a tensor is not what the model takes, `ConfigError` for `steps`.
    """
    images = _of_shape("images", images, (None, 3, *model.input_size), model)
    _check_steps(model, steps)
    first = codes = _start_codes(model, len(images), start)
    beside = _start_images(model, images, start, start_images)
    w_plus = codes.new_empty(len(images), steps, model.n_styles, LATENT_DIM)
    step_images = images.new_empty(len(images), steps, *images.shape[1:])
    last = images.new_empty(len(images), 3, *model.frame_size)
    for step in range(steps):
        codes = codes + _encode(model, images, beside)
        for face, frame in enumerate(render_each(model, codes)):
            step_images[face, step] = pooled(frame, model.input_size)
            if step == steps - 1:
                last[face] = frame
        w_plus[:, step] = codes
        beside = step_images[:, step]
    return Inversion(w_plus, last, step_images, first, model.latent_avg)


def bootstrap(
    first: RestyleModel,
    second: RestyleModel,
    images: Tensor,  # [n, 3, *input_size] in [-1, 1]
    *,
    steps: tuple[int, int] = (1, 5),
) -> tuple[Inversion, Inversion]:
    """Encoder bootstrapping (ReStyle, sec. 5): `second` goes on from where `first` ends.

    The second encoder sees the first one's codes and its last reconstruction, so that, say, a
    cartoon begins as the portrait that was inverted. Raises as `invert` does.
    """
    begun = invert(first, images, steps=steps[0])
    start, seen = begun.w_plus[:, -1], begun.step_images[:, -1]
    return begun, invert(second, images, steps=steps[1], start=start, start_images=seen)


def _encode(model: RestyleModel, images: Tensor, beside: Tensor | None) -> Tensor:
    """Residual codes [n, n_styles, 512] for images and what stands beside them."""
    shown = images if beside is None else torch.cat([images, beside], dim=1)
    whole = images.device.type != "cpu"
    return torch.cat(
        [model.encoder(few) for few in shown.split(len(shown) if whole else ENCODER_BATCH)]
    )


def _start_codes(model: RestyleModel, n: int, start: Tensor | None) -> Tensor:
    if start is not None:
        return _of_shape("start", start, (n, model.n_styles, LATENT_DIM), model)
    codes = model.latent_avg.expand(n, -1, -1)
    return codes if model.architecture.starts_from_average else torch.zeros_like(codes)


def _start_images(
    model: RestyleModel, images: Tensor, start: Tensor | None, start_images: Tensor | None
) -> Tensor | None:
    """What the first step sees beside the target; None for one-pass encoders."""
    if model.input_channels == images.shape[1]:
        return None
    if start_images is not None:
        return _of_shape("start_images", start_images, tuple(images.shape), model)
    if start is None:
        return average_image(model).expand_as(images)
    return torch.stack([pooled(frame, model.input_size) for frame in render_each(model, start)])


def _check_steps(model: RestyleModel, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps is {steps}, expected 1 or more")
    if steps > 1 and model.input_channels == 3:
        raise ConfigError(
            f"model '{model.name}' has a one-pass encoder, which sees no reconstruction: "
            f"steps must be 1, not {steps}"
        )


def _of_shape(
    what: str, given: Tensor, shape: tuple[int | None, ...], model: RestyleModel
) -> Tensor:
    """`given` on the model's device, if it is float32 of `shape` (None: any number above 0)."""
    fits = given.dim() == len(shape) and all(
        size == wanted or (wanted is None and size > 0)
        for size, wanted in zip(given.shape, shape, strict=False)
    )
    if not fits or given.dtype != torch.float32:
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        got = ", ".join(map(str, given.shape))
        dtype = str(given.dtype).removeprefix("torch.")
        raise ShapeError(f"{what}: got {dtype} [{got}], expected float32 [{wanted}]")
    return given.to(model.latent_avg.device)
