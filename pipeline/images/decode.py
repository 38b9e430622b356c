"""Decode bytes of unknown origin to upright 8-bit RGB, or raise one `Rejection`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipeline.choices import Icc
from pipeline.images import netpbm, tiff
from pipeline.images.colour import BadProfileError, to_rgb
from pipeline.images.formats import UNSAFE_WHEN_CUT, describe_foreign, is_cut_short
from pipeline.images.orientation import orientation_of, parse_orientation, turned_upright
from pipeline.images.pillow_open import (
    embedded_profile,
    has_arithmetic_coding,
    load_pixels,
    open_image,
)
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.storage.file_types import sniff

# Key of the decoded image's `info`: why its colour profile was not applied.
ICC_IGNORED = "icc_ignored"
# Errors of Pillow for a TIFF whose samples fit none of its modes.
_NO_MODE = ("unknown pixel mode", "unknown data organization", "Invalid value for samples")


@dataclass(frozen=True)
class ImageLimits:
    """Size limits of an image, checked before pixels are decoded, and the use of its profile."""

    max_pixels: int = 64_000_000  # width × height; a PNG of 17 KB can have 144 million
    min_side: int = 32  # pixels
    icc: Icc = "apply"  # "apply" converts profiles to sRGB; "ignore" is the reference scripts' way


def decode(content: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Return the first image of `content`, in any of the `SUPPORTED` formats, as upright 8-bit RGB.

    EXIF orientation and an embedded ICC profile are applied, alpha is composited on white, 16-bit
    samples are scaled. `info["icc_ignored"]` says why a profile is not applied: it is damaged or
    does not fit the image. Raises `Rejection` (`unsupported_format`, `too_large`, `too_small`,
    `truncated`, `undecodable` or `not_finite`) and nothing else, except `MemoryError`.
    """
    if not content:
        raise Rejection(RejectReason.TRUNCATED, "the file is empty")
    name = sniff(content)
    if name is None:
        raise Rejection(RejectReason.UNSUPPORTED_FORMAT, describe_foreign(content))
    try:
        # Pillow warns about metadata; only errors of the pixels matter here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content, name, limits or ImageLimits())
    except (Rejection, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Rejection(RejectReason.TOO_LARGE, str(error)) from error
    except Exception as error:  # on damaged files Pillow raises any type
        raise _damaged(content, name, error) from error


def _decode(content: bytes, name: str, limits: ImageLimits) -> Image.Image:
    if name == "PPM":
        header = netpbm.read_header(content)
        _check_size(header.size, limits)
        return to_rgb(netpbm.read_pixels(content, header))
    if name == "TIFF" and tiff.is_camera_raw(content, tags := tiff.read_tags(content)):
        raise Rejection(
            RejectReason.UNSUPPORTED_FORMAT,
            "it is a camera raw file (DNG, NEF, ARW, CR2, ...), of which only a preview could be "
            "read: develop it to JPEG, PNG or TIFF first",
        )
    if name in UNSAFE_WHEN_CUT and is_cut_short(content, name):
        raise _ends_early(content, name, "by its own sizes")
    if name == "TIFF" and tiff.pillow_misreads(content, tags):
        return _decode_wide(content, tags, limits)
    try:
        image = open_image(content, name)
    except SyntaxError as error:
        if name == "TIFF" and str(error).startswith(_NO_MODE):
            return _decode_wide(content, tags, limits)
        raise
    with image:
        _check_size(image.size, limits)
        if name == "TIFF":
            tiff.check_strips(content, tags)
        pixels = load_pixels(image, content)
        profile = embedded_profile(image, content) if limits.icc == "apply" else None
        return _finish(pixels, profile, orientation_of(image))


def _decode_wide(content: bytes, tags: tiff.Tags, limits: ImageLimits) -> Image.Image:
    layout = tiff.read_layout(content, tags)
    _check_size(layout.size, limits)
    pixels = tiff.read_pixels(content, layout)
    profile = bytes(tags.get(tiff.PROFILE, ())) if limits.icc == "apply" else None
    return _finish(pixels, profile or None, parse_orientation(tags.get(tiff.ORIENTATION, 1)))


def _finish(pixels: Image.Image, profile: Any, orientation: int) -> Image.Image:
    try:
        return turned_upright(to_rgb(pixels, profile), orientation)
    except BadProfileError as error:
        image = turned_upright(to_rgb(pixels), orientation)
        image.info[ICC_IGNORED] = str(error)
        return image


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise Rejection(
            RejectReason.TOO_LARGE,
            f"{width}×{height} is {width * height} pixels, the limit is {limits.max_pixels}: "
            "--max-pixels takes larger ones",
        )
    if min(size) < limits.min_side:
        raise Rejection(
            RejectReason.TOO_SMALL,
            f"{width}×{height}: the shorter side is under {limits.min_side} pixels",
        )


def _damaged(content: bytes, name: str, error: Exception) -> Rejection:
    reason = str(error) or type(error).__name__
    if is_cut_short(content, name) or "truncated" in reason.lower():
        return _ends_early(content, name, reason)
    if name == "PSD" and isinstance(error.__cause__, KeyError):
        mode, bits = error.__cause__.args[0]
        reason = f"its colour mode {mode} of {bits} bits is not read: save it as PNG or TIFF"
    if name == "JPEG" and has_arithmetic_coding(content):
        reason += "; it uses arithmetic coding, which few programs read: save it again without"
    return Rejection(RejectReason.UNDECODABLE, f"{name} cannot be decoded ({reason})")


def _ends_early(content: bytes, name: str, reason: str) -> Rejection:
    return Rejection(
        RejectReason.TRUNCATED, f"{name} of {len(content)} bytes ends early ({reason})"
    )
