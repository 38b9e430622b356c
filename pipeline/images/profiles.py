"""Embedded ICC profiles to sRGB, through LittleCMS; a profile that changes nothing is not applied.

Whether a profile is sRGB is told by what it does to colours, not by its name: names are free text,
and many writers have a form of sRGB of their own.
"""

from __future__ import annotations

import functools
import io
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The colour space of a profile -> the one mode of pixels that it describes.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
# Of a scanner, a display, a printer, a colour space, or Lab itself; not links between devices.
_CLASSES = {"scnr", "mntr", "prtr", "spac", "abst"}
# Profiles of sRGB differ by one level from each other, in rounding. Adobe RGB moves some colours by
# 135 levels, Display P3 by 105, a gamma of 2.2 by 6.
_SAME_LEVELS = 2
_MAX_BYTES = 8 << 20  # those of printers take up to 3 MB
_KEPT = 16  # transforms; a dataset has a few profiles, each in thousands of images
# Media white stays white. Black points are matched, as viewers and editors do, so that the shadows
# of a print are not cut off. The tables of "perceptual" differ from one maker to the next.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.HIGHRESPRECALC
# A table of grey levels is made once: it need not be fast, and LittleCMS's 33 nodes are too few.
_GREY_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_LEAST_WHITE, _LEAST_CONTRAST = 236, 64  # of what a sound profile makes of white, and of black

_Transform: TypeAlias = "ImageCms.ImageCmsTransform | NDArray[np.uint8]"


class BadProfileError(Exception):
    """The profile is damaged, or does not fit the image; the text says which."""


def to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """`image` (RGB, L, CMYK or LAB) with the colours of `profile` as sRGB; L stays L.

    Returns None where the profile is sRGB, or the sRGB curve for L. Raises `BadProfileError`.
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


@functools.lru_cache(maxsize=_KEPT)
def _transform(profile: bytes, mode: str) -> _Transform | str | None:
    """What turns pixels of `mode` to sRGB (L: a table of 256), None for nothing, or what is wrong.

    Errors are returned, so that a profile of a thousand images is judged once.
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
        return _checked(transform, mode)
    except Exception:  # noqa: BLE001 - on damaged profiles Pillow raises several types
        return "the colour profile is damaged"


def _checked(transform: ImageCms.ImageCmsTransform, mode: str) -> _Transform | str | None:
    """`transform` if it is sound and needed."""
    before = _probe(mode)
    after = np.asarray(
        transform.apply(
            Image.fromarray(before, mode)
            if mode == "LAB"
            else Image.frombytes(mode, (len(before), 1), before.tobytes())
        )
    )[0]
    black, white = int(after[0].max()), int(after[-1].min())
    if white < _LEAST_WHITE or white - black < _LEAST_CONTRAST:
        return "the colour profile is damaged: it has no white or no black"
    if mode == "L":
        table = after[:, 1]
        return None if _is_same(np.arange(256), table) else table
    if mode == "RGB" and _is_same(before, after):
        return None
    return transform


def _is_same(before: NDArray[Any], after: NDArray[np.uint8]) -> bool:
    return int(np.abs(after.astype(int) - before.astype(int)).max()) <= _SAME_LEVELS


def _probe(mode: str) -> NDArray[np.uint8]:
    """Colours that show what a transform does: [n, channels], black first and white last."""
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
