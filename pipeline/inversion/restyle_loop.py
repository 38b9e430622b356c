"""The ReStyle loop (Alaluf et al. 2021, sec. 3.2): codes refined by residual steps."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.render import average_image, pooled, render_each
from pipeline.inversion.result import Inversion
from pipeline.inversion.shapes import of_shape
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

# Faces the encoder sees at once: its largest maps are 17 MB a face, and several are alive.
ENCODER_BATCH = {"cpu": 16, "cuda": 64}


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
    images = of_shape("images", images, (None, 3, *model.input_size), model)
    check_steps(model, steps)
    first = codes = start_codes(model, len(images), start)
    begun = beside = start_beside(model, images, start, start_images)
    w_plus = codes.new_empty(len(images), steps, model.n_styles, LATENT_DIM)
    step_images = images.new_empty(len(images), steps, *images.shape[1:])
    frames = images.new_empty(len(images), 3, *model.frame_size)
    for step in range(steps):
        last = frames if step == steps - 1 else None
        codes, beside = restyle_step(model, images, codes, beside, last)
        w_plus[:, step], step_images[:, step] = codes, beside
    made = torch.full((len(images),), steps, device=images.device)
    passes = made + start_renders(model, start, start_images)
    average = model.latent_avg
    return Inversion(w_plus, frames, step_images, first, begun, average, made, passes)


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


def restyle_step(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *input_size]
    codes: Tensor,  # [n, n_styles, 512]
    beside: Tensor | None,  # [n, 3, *input_size], the image of `codes`; None for one-pass encoders
    frames: Tensor | None = None,  # [n, 3, *frame_size]
) -> tuple[Tensor, Tensor]:
    """The codes after one residual step and their images, pooled to the encoder's input size.

    The images at full size are written into `frames` where it is given.
    """
    codes = codes + _encode(model, images, beside)
    seen = torch.empty_like(images)
    for face, frame in enumerate(render_each(model, codes)):
        seen[face] = pooled(frame, model.input_size)
        if frames is not None:
            frames[face] = frame
    return codes, seen


def _encode(model: RestyleModel, images: Tensor, beside: Tensor | None) -> Tensor:
    """Residual codes [n, n_styles, 512] for images and what stands beside them."""
    shown = images if beside is None else torch.cat([images, beside], dim=1)
    at_once = ENCODER_BATCH["cpu" if images.device.type == "cpu" else "cuda"]
    return torch.cat([model.encoder(few) for few in shown.split(at_once)])


def start_codes(model: RestyleModel, n: int, start: Tensor | None) -> Tensor:
    """The codes before the first step, [n, n_styles, 512]: `start`, or what the model starts from.

    Raises `ShapeError` for a start of another shape.
    """
    if start is not None:
        return of_shape("start", start, (n, model.n_styles, LATENT_DIM), model)
    codes = model.latent_avg.expand(n, -1, -1)
    return codes if model.architecture.starts_from_average else torch.zeros_like(codes)


def start_beside(
    model: RestyleModel, images: Tensor, start: Tensor | None, start_images: Tensor | None
) -> Tensor | None:
    """What the first step sees beside the target; None for one-pass encoders."""
    if model.single_pass:
        return None
    if start_images is not None:
        return of_shape("start_images", start_images, tuple(images.shape), model)
    if start is None:
        return average_image(model).expand_as(images)
    codes = start.to(images.device)
    return torch.stack([pooled(frame, model.input_size) for frame in render_each(model, codes)])


def start_renders(model: RestyleModel, start: Tensor | None, start_images: Tensor | None) -> int:
    """Generator passes a face that `start_beside` costs."""
    return int(not model.single_pass and start is not None and start_images is None)


def check_steps(model: RestyleModel, steps: int) -> None:
    """Raise `ConfigError` where `model` cannot make `steps` steps."""
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        auto = " (as many as a face needs: `invert_adaptively`)" if str(steps) == "auto" else ""
        raise ConfigError(f"steps is {steps!r}, expected a whole number from 1{auto}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}, expected 1 or more")
    if steps > 1 and model.single_pass:
        raise ConfigError(
            f"model '{model.name}' has a one-pass encoder, which sees no reconstruction: "
            f"steps must be 1, not {steps}"
        )
