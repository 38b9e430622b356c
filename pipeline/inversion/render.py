"""Render codes: frames at full size, images pooled to the encoder's input, the average image."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.model import RestyleModel

# Output pixels per generator call: one face of 256 px or more on a CPU, sixteen of 64 px.
PIXELS_AT_ONCE = {"cpu": 256 * 256, "cuda": 16 * 1024 * 1024}


# Changes whenever a weight is replaced or written to.
Version = tuple[tuple[int, int], ...]


_average_images: WeakKeyDictionary[RestyleModel, tuple[Version, Tensor]] = WeakKeyDictionary()


def render_each(model: RestyleModel, codes: Tensor) -> Iterator[Tensor]:
    """Yield the frame [3, *frame_size] of each of `codes` [n, n_styles, 512].

    A CPU renders large faces one by one, so that the feature maps of only one face are in memory.
    """
    pixels = PIXELS_AT_ONCE["cpu" if codes.device.type == "cpu" else "cuda"]
    for batch in codes.split(max(1, pixels // model.generator_size**2)):
        yield from model.frame(model.generator(batch))


def pooled(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Average `frame` [3, H, W] down to `size` (h, w); a smaller frame repeats its pixels."""
    return F.adaptive_avg_pool2d(frame, size)


def average_image(model: RestyleModel) -> Tensor:
    """Return the generator's image of the average latent, pooled to [3, *input_size].

    Cached per model, and computed again when its weights have changed. A write through
    `weight.data` is not noticed.
    """
    version = version_of(model)
    cached = _average_images.get(model)
    if cached is not None and cached[0] == version:
        return cached[1]
    # Not in inference mode: the next caller may train with the image.
    with torch.inference_mode(mode=False), torch.no_grad():
        (frame,) = render_each(model, model.latent_avg[None])
        image = pooled(frame, model.input_size)
    if version is not None:
        _average_images[model] = (version, image)
    return image


def version_of(model: RestyleModel) -> Version | None:
    """Return the current version of the generator's weights and the average latent of `model`.

    None if it is unknown: PyTorch counts no writes to tensors made in `torch.inference_mode`.
    """
    tensors = [model.latent_avg, *model.generator.parameters(), *model.generator.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
