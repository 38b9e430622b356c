"""Any of Pillow's pixel modes to 8-bit RGB, with nothing saturated and no alpha dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.rejects import Rejection, RejectReason

_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_WIDE = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB, 8 bits a channel; transparent pixels become white.

    16-bit grey is scaled by 1/257 (Pillow's own conversion clips it: everything above 255 turns
    white). 32-bit integers and floats carry no range in their files; `scale_samples` says which is
    taken. A transparent colour of 16 bits a channel is left out. Colour profiles are not applied,
    as in the reference scripts.
    """
    if image.mode in _WIDE:
        image = _grey_from_wide(image)
    if image.mode == "RGB" and _is_wide(image.info.get("transparency")):
        del image.info["transparency"]
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_samples(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Integer or float samples of any shape to uint8 [0, 255], rounded.

    uint16 is scaled from [0, 65535]. Other types take the smallest range that holds their maximum:
    [0, 1] (floats only), [0, 255] or [0, 65535]; negative values are black. Rejects NaN and
    infinities (`not_finite`) and values above 65535, whose scale nobody knows
    (`unsupported_format`).
    """
    if not np.isfinite(values).all():
        raise Rejection(RejectReason.NOT_FINITE, "the image holds NaN or infinite samples")
    top = _range_of(values)
    scaled: NDArray[np.uint8] = np.rint(np.clip(values, 0, top) * (255.0 / top)).astype(np.uint8)
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


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
