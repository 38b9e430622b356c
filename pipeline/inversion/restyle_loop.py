"""ReStyle loop (Alaluf et al. 2021, sec. 3.2): refine codes by residual steps."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.fast import FastModel
from pipeline.inversion.render import average_image, pooled, render_each
from pipeline.inversion.result import Inversion, check_tensor
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

# Faces per encoder pass: the largest feature maps take 17 MB per face, and several coexist.
ENCODER_BATCH = {"cpu": 16, "cuda": 64}


@torch.no_grad()
def invert(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *model.input_size] in [-1, 1]
    *,
    steps: int = 5,
    start: Tensor | None = None,
    start_images: Tensor | None = None,
    full_size: bool = True,
) -> Inversion:
    """Refine W+ codes for `images` in `steps` residual steps (ReStyle, sec. 3.2).

    The first step starts from the average latent, or from `start` [n, n_styles, 512] and
    `start_images` [n, 3, *input_size] (default: the generator's images of `start`). A model with a
    one-pass encoder makes one step. A face's result does not depend on other faces, up to rounding.
    Non-finite results raise no error: see `Inversion.finite`. With `full_size` off
    `Inversion.images` are the last step's pooled images. A `FastModel` is faster, and less exact.

    Raises `ShapeError` if a tensor does not fit the model, `ConfigError` for `steps`.
    """
    images = check_tensor("images", images, (None, 3, *model.input_size), model)
    check_steps(model, steps)
    first, initial, passes = initial_state(model, images, start, start_images)
    codes, rendered = first, initial
    w_plus = codes.new_empty(len(images), steps, model.n_styles, LATENT_DIM)
    step_images = images.new_empty(len(images), steps, *images.shape[1:])
    frames = images.new_empty(len(images), 3, *model.frame_size) if full_size else None
    for step in range(steps):
        last = frames if step == steps - 1 else None
        codes, rendered = restyle_step(model, images, codes, rendered, last)
        w_plus[:, step], step_images[:, step] = codes, rendered
    steps_made = torch.full((len(images),), steps, device=images.device)
    images = step_images[:, -1] if frames is None else frames
    return Inversion(
        w_plus,
        images,
        step_images,
        start=first,
        start_images=initial,
        latent_avg=model.latent_avg,
        steps_made=steps_made,
        generator_passes=steps_made + passes,
    )


def restyle_step(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *input_size]
    codes: Tensor,  # [n, n_styles, 512]
    reconstruction: Tensor | None,  # [n, 3, *input_size], of `codes`; None for one-pass encoders
    frames: Tensor | None = None,  # [n, 3, *frame_size]
) -> tuple[Tensor, Tensor]:
    """Return the codes after one residual step, and their images, pooled to the input size.

    Also writes the images at full size into `frames`, if given.
    """
    if frames is None and isinstance(model, FastModel):
        return model.step(images, codes, reconstruction)
    codes = codes + _encode(model, images, reconstruction)
    rendered = torch.empty_like(images)
    for face, frame in enumerate(render_each(model, codes)):
        rendered[face] = pooled(frame, model.input_size)
        if frames is not None:
            frames[face] = frame
    return codes, rendered


def _encode(model: RestyleModel, images: Tensor, reconstruction: Tensor | None) -> Tensor:
    """Return residual codes [n, n_styles, 512] of images and their reconstructions."""
    inputs = images if reconstruction is None else torch.cat([images, reconstruction], dim=1)
    batch_size = ENCODER_BATCH["cpu" if images.device.type == "cpu" else "cuda"]
    return torch.cat([model.encoder(batch) for batch in inputs.split(batch_size)])


def rows_of(model: RestyleModel, codes: Tensor) -> Tensor:
    """Return the first rows of codes [n, rows, 512], as many as `model` has, or fewer.

    The further rows of a larger generator of the same W space are styles of levels that `model`
    does not have.
    """
    return codes[:, : model.n_styles]


def initial_state(
    model: RestyleModel, images: Tensor, start: Tensor | None, start_images: Tensor | None
) -> tuple[Tensor, Tensor | None, int]:
    """Return the codes before the first step, their images, and the generator passes per face.

    Codes [n, n_styles, 512] are `start` or the model's own. Images [n, 3, *input_size] are those
    that the first step sees; None for one-pass encoders. Raises `ShapeError` if `start` or
    `start_images` have another shape.
    """
    if start is None:
        codes = start_codes(model, len(images))
    else:
        codes = check_tensor("start", start, (len(images), model.n_styles, LATENT_DIM), model)
    if model.single_pass:
        return codes, None, 0
    if start_images is not None:
        return codes, check_tensor("start_images", start_images, tuple(images.shape), model), 0
    if start is None:
        return codes, average_image(model).expand_as(images), 0
    frames = render_each(model, codes)
    return codes, torch.stack([pooled(frame, model.input_size) for frame in frames]), 1


def start_codes(model: RestyleModel, n: int) -> Tensor:
    """Return the codes [n, n_styles, 512] that the model's own first step begins with."""
    codes = model.latent_avg.expand(n, -1, -1)
    return codes if model.architecture.starts_from_average else torch.zeros_like(codes)


def check_steps(model: RestyleModel, steps: int) -> None:
    """Raise `ConfigError` if `model` cannot make `steps` steps."""
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        hint = " (for adaptive steps call `invert_adaptively`)" if str(steps) == "auto" else ""
        raise ConfigError(f"steps is {steps!r}, expected a whole number of 1 or more{hint}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}, expected 1 or more")
    if steps > 1 and model.single_pass:
        raise ConfigError(
            f"model '{model.name}' has a one-pass encoder, which sees no reconstruction: "
            f"steps must be 1, not {steps}"
        )
