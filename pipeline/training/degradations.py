"""Damage to the encoder's input images, so that it learns to restore them.

Used for super-resolution, inpainting and denoising (pSp, arXiv 2008.00951, sec. 4.3): the encoder
gets the damaged crop, and the losses compare with the original. Random draws depend only on the
seed and the image's number, so that an image has the same damage in every epoch.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pipeline.errors import ConfigError

Damage = Callable[[Image.Image, float, np.random.Generator], Image.Image]

GREY = (128, 128, 128)  # colour of a mask: the middle of the range


@dataclass(frozen=True)
class Degradation:
    """Kind of damage to an RGB image, and the meaning and bounds of its amount."""

    meaning: str
    minimum: float
    maximum: float
    apply: Damage
    default: float | None = None  # None: the amount must be given


def _downsample(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    small = [max(1, round(side / factor)) for side in image.size]
    reduced = image.resize((small[0], small[1]), Image.Resampling.BILINEAR)
    return reduced.resize(image.size, Image.Resampling.BILINEAR)


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _mask(image: Image.Image, fraction: float, rng: np.random.Generator) -> Image.Image:
    """Fill one randomly placed box: `fraction` of the area, with the image's aspect ratio."""
    width, height = (round(side * fraction**0.5) for side in image.size)
    left = int(rng.integers(0, image.width - width, endpoint=True))
    top = int(rng.integers(0, image.height - height, endpoint=True))
    masked = image.copy()
    masked.paste(GREY, (left, top, left + width, top + height))
    return masked


def _noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noisy = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(sigma)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _gray(image: Image.Image, _amount: float, _: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=round(quality))
    with Image.open(io.BytesIO(sink.getvalue())) as packed:
        return packed.convert("RGB")


DEGRADATIONS = {
    "downsample": Degradation("factor; bilinear down and back up", 1, 256, _downsample),
    "blur": Degradation("sigma of a Gaussian in pixels", 0, 256, _blur),
    "mask": Degradation("fraction of the area under a randomly placed grey box", 0, 1, _mask),
    "noise": Degradation("sigma of Gaussian noise in levels of 255", 0, 255, _noise),
    "gray": Degradation("no amount", 0, 1, _gray, default=1),
    "jpeg": Degradation("quality of a JPEG file", 1, 95, _jpeg),
}


class Degrader:
    """Apply the steps of `--degrade`, such as `downsample:8,noise:10`, in their order."""

    def __init__(self, text: str, seed: int) -> None:
        self.steps, self.seed = parse_degradations(text), seed

    def __call__(
        self,
        pixels: np.ndarray,  # uint8 [h, w, 3]
        number: int,  # of the image in its set
    ) -> np.ndarray:
        """Return the damaged image, uint8 [h, w, 3]; equal arguments give equal results."""
        rng = np.random.default_rng([self.seed, number])
        image = Image.fromarray(pixels)
        for name, amount in self.steps:
            image = DEGRADATIONS[name].apply(image, amount, rng)
        return np.asarray(image)


def parse_degradations(text: str) -> list[tuple[str, float]]:
    """Return the names and amounts in `name:amount,name:amount`.

    Raises `ConfigError` for unknown names and bad amounts.
    """
    return [_parsed(part.strip()) for part in text.split(",")]


def _parsed(part: str) -> tuple[str, float]:
    name, _, amount = part.partition(":")
    kind = DEGRADATIONS.get(name)
    if kind is None:
        valid = ", ".join(f"{key} ({kind.meaning})" for key, kind in DEGRADATIONS.items())
        raise ConfigError(f"--degrade: {name!r} is not a degradation; valid: {valid}")
    if not amount and kind.default is not None:
        return name, kind.default
    try:
        value = float(amount)
    except ValueError:
        value = float("nan")
    if not kind.minimum <= value <= kind.maximum:
        raise ConfigError(
            f"--degrade {part}: {name} takes a number from {kind.minimum:g} to {kind.maximum:g} "
            f"({kind.meaning}), as in {name}:{min(kind.maximum, max(kind.minimum, 8)):g}"
        )
    return name, value
