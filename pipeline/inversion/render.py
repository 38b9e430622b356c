"""From codes to what the encoder sees: frames at full size, pooled images, the average image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.model import RestyleModel

# Output pixels per generator call: one face of 256 px or more on a CPU, sixteen of 64 px.
PIXELS_AT_ONCE = {"cpu": 256 * 256, "cuda": 16 * 1024 * 1024}


# Changes when a weight is replaced or written to.
Version = tuple[tuple[int, int], ...]


class _Remembered(NamedTuple):
    weights: Version
    image: Tensor


_average_images: WeakKeyDictionary[RestyleModel, _Remembered] = WeakKeyDictionary()


def render_each(model: RestyleModel, codes: Tensor) -> Iterator[Tensor]:
    """The frame of each of `codes` [n, n_styles, 512], one after the other: [3, *frame_size].

    A CPU renders large faces one by one, so that only one face's feature maps are alive at a time.
    """
    pixels = PIXELS_AT_ONCE["cpu" if codes.device.type == "cpu" else "cuda"]
    for few in codes.split(max(1, pixels // model.generator_size**2)):
        yield from model.frame(model.generator(few))


def pooled(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """`frame` [3, H, W] averaged down to `size` (h, w); a smaller frame repeats its pixels."""
    return F.adaptive_avg_pool2d(frame, size)


def average_image(model: RestyleModel) -> Tensor:
    """What the generator makes of the average latent, pooled to [3, *input_size].

    Computed once per model and again when its weights have changed in place, by other means than
    `weight.data`.
    """
    weights = version_of(model)
    known = _average_images.get(model)
    if known is not None and known.weights == weights:
        return known.image
    # Whoever asks next may train with it, which what is made in inference mode does not allow.
    with torch.inference_mode(mode=False), torch.no_grad():
        (frame,) = render_each(model, model.latent_avg[None])
        image = pooled(frame, model.input_size)
    if weights is not None:
        _average_images[model] = _Remembered(weights, image)
    return image


def version_of(model: RestyleModel) -> Version | None:
    """Which weights of the generator, and which average latent, `model` holds at the moment.

    None where nothing tells: PyTorch counts no writes to what was made in `torch.inference_mode`.
    """
    tensors = [model.latent_avg, *model.generator.parameters(), *model.generator.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
