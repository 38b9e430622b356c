"""Convert any of Pillow's pixel modes to 8-bit RGB, and embedded ICC profiles to sRGB.

No sample is saturated and alpha is composited on white. A profile that does not change colours is
not applied: this is tested on colours, since profile names are free text and many writers have
their own version of sRGB.
"""

from __future__ import annotations

import functools
import io
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.images.rejects import Rejection, RejectReason

_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_WIDE = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_GREY = {"L", "LA"}
_BLOCK = 1 << 20  # samples scaled at once, to limit memory for wide samples


def to_rgb(image: Image.Image, profile: Any = None) -> Image.Image:
    """Return `image` as RGB with 8 bits per channel; transparent pixels become white.

    16-bit grey is scaled by 1/257 (Pillow's own conversion makes all values above 255 white).
    `scale_samples` chooses the range of 32-bit integers and floats. A transparent colour of 16
    bits per channel is ignored. Colours are those of the ICC profile `profile`, or sRGB if it is
    None. Raises `BadProfileError`.
    """
    if image.mode in _WIDE:
        image = _grey_from_wide(image)
    if image.mode == "La":  # Pillow converts it only to LA
        image = image.convert("LA")
    if image.mode == "RGB" and _is_wide(image.info.get("transparency")):
        del image.info["transparency"]
    has_alpha = image.mode in _WITH_ALPHA or "transparency" in image.info
    if profile is not None and image.mode != "1":
        image = _apply_profile(image, profile, has_alpha=has_alpha)
    if has_alpha:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_samples(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale integer or float samples of any shape to uint8 [0, 255], rounded.

    uint16 is scaled from [0, 65535], other types from the smallest range that holds their maximum:
    [0, 1] (floats only), [0, 255] or [0, 65535]. Negative values become 0. Raises `Rejection` for
    NaN and infinities (`not_finite`), and for values above 65535, whose range is unknown
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
    """Return whether a transparent colour has 16 bits per channel.

    Pillow keeps the upper bytes of such pixels, but compares them with the colour's lower bytes.
    """
    return isinstance(key, tuple) and max(key) > 255


def _grey_from_wide(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray(scale_samples(values))
    key = image.info.get("transparency")
    if isinstance(key, int):  # a PNG's transparent grey level of 16 bits
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _apply_profile(image: Image.Image, profile: Any, *, has_alpha: bool) -> Image.Image:
    """Return `image` with the colours of `profile` as sRGB, or `image` if they are sRGB."""
    device, alpha = image, None
    if has_alpha:
        # Before the conversion: a transparent colour is given in the file's own levels.
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


# Colour space of a profile -> pixel mode that it describes.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
# Device classes: scanner, display, printer, colour space, abstract; no device links.
_CLASSES = {"scnr", "mntr", "prtr", "spac", "abst"}
# Profiles of sRGB differ by one level, from rounding. Adobe RGB changes some colours by 135 levels,
# Display P3 by 105, a gamma of 2.2 by 6.
_SAME_LEVELS = 2
_MAX_BYTES = 8 << 20  # printer profiles take up to 3 MB
_CACHED_TRANSFORMS = 16  # a dataset has a few profiles, each in thousands of images
# Media white stays white. Black points are matched, as in viewers and editors, so that dark colours
# of a print are not clipped. "Perceptual" tables differ between vendors.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.HIGHRESPRECALC
# A grey table is computed once per profile: it need not be fast, and 33 nodes are too few.
_GREY_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_MIN_WHITE, _MIN_CONTRAST = 236, 64  # of a valid profile: level of white, and distance to black

_Transform: TypeAlias = "ImageCms.ImageCmsTransform | NDArray[np.uint8]"


class BadProfileError(Exception):
    """Raised for a profile that is damaged or does not fit the image; the message says which."""


def to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """Return `image` (RGB, L, CMYK or LAB) with the colours of `profile` as sRGB; L stays L.

    None if the profile is sRGB, or has the sRGB curve for L. Raises `BadProfileError`.
    """
    if not isinstance(profile, bytes) or not profile:
        raise BadProfileError("the colour profile is incomplete")
    transform = _transform(profile, image.mode)
    if isinstance(transform, str):
        raise BadProfileError(transform)
    if transform is None:
        return None
    if isinstance(transform, ImageCms.ImageCmsTransform):
        return transform.apply(image)
    return image.point(transform.tolist())


@functools.lru_cache(maxsize=_CACHED_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> _Transform | str | None:
    """Return the transform of `mode` to sRGB (L: a table), None if not needed, or an error text.

    Errors are returned so that they are cached: a profile of many images is checked once.
    """
    if len(profile) > _MAX_BYTES:
        return f"the colour profile has {len(profile)} bytes: more than {_MAX_BYTES} are not read"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space, source.profile.device_class
        if kind not in _CLASSES or space not in _MODES:
            return f"the colour profile is of class {kind.strip()} for {space.strip()}"
        if _MODES[space] != mode:
            return f"the colour profile is for {space.strip()}, the image is {mode}"
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        flags = _GREY_FLAGS if mode == "L" else _FLAGS
        transform = ImageCms.buildTransform(source, target, mode, "RGB", _INTENT, flags)
        return _check_transform(transform, mode)
    except Exception:  # noqa: BLE001 - on damaged profiles Pillow raises several types
        return "the colour profile is damaged"


def _check_transform(transform: ImageCms.ImageCmsTransform, mode: str) -> _Transform | str | None:
    """Return `transform` if it is valid and changes colours; see `_transform`."""
    before = _test_colours(mode)
    after = np.asarray(
        transform.apply(
            Image.fromarray(before, mode)
            if mode == "LAB"
            else Image.frombytes(mode, (len(before), 1), before.tobytes())
        )
    )[0]
    black, white = int(after[0].max()), int(after[-1].min())
    if white < _MIN_WHITE or white - black < _MIN_CONTRAST:
        return "the colour profile is damaged: it has no white or no black"
    if mode == "L":
        table = after[:, 1]
        return None if _is_same(np.arange(256), table) else table
    if mode == "RGB" and _is_same(before, after):
        return None
    return transform


def _is_same(before: NDArray[Any], after: NDArray[np.uint8]) -> bool:
    return int(np.abs(after.astype(int) - before.astype(int)).max()) <= _SAME_LEVELS


def _test_colours(mode: str) -> NDArray[np.uint8]:
    """Return colours to test a transform, [n, channels], black first and white last."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    match mode:
        case "L":
            return np.arange(256, dtype=np.uint8)[:, None]
        case "CMYK":
            return np.array([[255, 255, 255, 255], [0, 0, 0, 0]], np.uint8)
        case "LAB":
            return np.array([[0, 128, 128], [255, 128, 128]], np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.concatenate([greys[:-1], cube, greys[-1:]])
