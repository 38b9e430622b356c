"""Resize a prealigned image to the encoder's input size."""

from __future__ import annotations

from PIL import Image

from pipeline.choices import Fit


def fit_to_size(
    image: Image.Image,
    size: tuple[int, int],  # (height, width)
    fit: Fit,
) -> tuple[Image.Image, float]:
    """Return `image` at `size`, and the fraction of the result that is padding.

    `stretch` resizes each axis on its own, as the transforms of pSp, e4e and ReStyle do. `crop`
    takes the largest centred part of the right proportions, as StyleGAN2's LSUN training sets
    were cropped. `pad` puts the whole image on black. All resize bilinearly with antialiasing.
    """
    height, width = size
    if fit == "crop":
        return _resized(image, (width, height), _centre(image.size, width / height)), 0.0
    if fit == "pad":
        return _on_black(image, (width, height))
    return _resized(image, (width, height)), 0.0


def _resized(
    image: Image.Image,
    size: tuple[int, int],  # (width, height)
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    if image.size == size and (box is None or box == (0, 0, *size)):
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _centre(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    """Return the largest centred box of `aspect` (width / height): left, top, right, bottom."""
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def _on_black(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, float]:
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if inner == size:
        return _resized(image, size), 0.0
    canvas = Image.new("RGB", size)
    canvas.paste(_resized(image, inner), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas, 1 - inner[0] * inner[1] / (size[0] * size[1])
