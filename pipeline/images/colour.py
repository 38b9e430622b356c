"""Any of Pillow's pixel modes to 8-bit RGB, with nothing saturated and no alpha dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.profiles import to_srgb
from pipeline.images.rejects import Rejection, RejectReason

_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_WIDE = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_GREY = {"L", "LA"}
_BLOCK = 1 << 20  # samples that are scaled at once: wide images take memory enough


def to_rgb(image: Image.Image, profile: Any = None) -> Image.Image:
    """`image` as RGB, 8 bits a channel; transparent pixels become white.

    16-bit grey is scaled by 1/257 (Pillow's own conversion clips it: everything above 255 turns
    white). 32-bit integers and floats carry no range in their files; `scale_samples` says which is
    taken. A transparent colour of 16 bits a channel is left out. The colours are those of
    `profile`, an ICC profile, or sRGB where that is None. Raises `BadProfileError`.
    """
    if image.mode in _WIDE:
        image = _grey_from_wide(image)
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode == "RGB" and _is_wide(image.info.get("transparency")):
        del image.info["transparency"]
    has_alpha = image.mode in _WITH_ALPHA or "transparency" in image.info
    if profile is not None and image.mode != "1":
        image = _managed(image, profile, has_alpha=has_alpha)
    if has_alpha:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_samples(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Integer or float samples of any shape to uint8 [0, 255], rounded.

    uint16 is scaled from [0, 65535]. Other types take the smallest range that holds their maximum:
    [0, 1] (floats only), [0, 255] or [0, 65535]; negative values are black. Rejects NaN and
    infinities (`not_finite`) and values above 65535, whose scale nobody knows
    (`unsupported_format`).
    """
    rows = max(1, _BLOCK * len(values) // max(1, values.size))
    blocks = [slice(start, start + rows) for start in range(0, len(values), rows)]
    if not all(np.isfinite(values[block]).all() for block in blocks):
        raise Rejection(RejectReason.NOT_FINITE, "the image holds NaN or infinite samples")
    top = _range_of(values)
    scaled = np.empty(values.shape, np.uint8)
    for block in blocks:
        scaled[block] = np.rint(np.clip(values[block], 0, top) * (255.0 / top))
    return scaled


def _range_of(values: NDArray[Any]) -> float:
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in either byte order
        return 65535.0
    peak = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    for top in ranges:
        if peak <= top:
            return top
    raise Rejection(
        RejectReason.UNSUPPORTED_FORMAT, f"samples reach {peak:g}: their range is not known"
    )


def _is_wide(key: object) -> bool:
    """Whether a transparent colour has 16 bits.

    Pillow reads such pixels as their upper halves, and would look for the lower half of the colour.
    """
    return isinstance(key, tuple) and max(key) > 255


def _grey_from_wide(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray(scale_samples(values))
    key = image.info.get("transparency")
    if isinstance(key, int):  # a PNG's transparent grey level, in 16 bits
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _managed(image: Image.Image, profile: Any, *, has_alpha: bool) -> Image.Image:
    """`image` with the colours of `profile` as sRGB; itself where they are so already."""
    device, alpha = image, None
    if has_alpha:
        # Before the colours change: a transparent colour is named by its level in the file.
        whole = image.convert("RGBA")
        device, alpha = whole.convert("RGB"), whole.getchannel("A")
        if image.mode in _GREY:
            device = whole.getchannel("G")
    elif image.mode in ("P", "YCbCr"):
        device = image.convert("RGB")
    converted = to_srgb(device, profile)
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
