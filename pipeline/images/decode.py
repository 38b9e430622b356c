"""Bytes of unknown origin to upright 8-bit RGB, or to one reason why not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipeline.choices import Icc
from pipeline.images import netpbm, tiff
from pipeline.images.colour import to_rgb
from pipeline.images.foreign import describe_foreign
from pipeline.images.formats import UNSAFE_WHEN_CUT, is_cut_short
from pipeline.images.orientation import orientation_of, parse_orientation, turned_upright
from pipeline.images.pillow_open import (
    embedded_profile,
    has_arithmetic_coding,
    load_pixels,
    open_image,
)
from pipeline.images.profiles import BadProfileError
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.storage.file_types import sniff

# A key of the decoded image's `info`: why its colour profile was not applied.
ICC_IGNORED = "icc_ignored"
_TIFF_EXTENTS = ((273, 279), (324, 325))  # offsets and byte counts: of strips, of tiles
# What Pillow says of a TIFF whose samples it has no mode for.
_NO_MODE = ("unknown pixel mode", "unknown data organization", "Invalid value for samples")


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be, checked before any pixel is decoded, and whose colours it has."""

    max_pixels: int = 64_000_000  # width × height; a 17 KB PNG can hold 144 million of them
    min_side: int = 32  # pixels
    icc: Icc = "apply"  # embedded colour profiles: to sRGB, or ignored as the reference scripts do


def decode(content: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """The first image of `content`, of any of the formats `SUPPORTED`, as upright 8-bit RGB.

    EXIF orientation is applied, an embedded ICC profile is applied, alpha is composited on white,
    16-bit samples are scaled. `info["icc_ignored"]` says why a profile was not applied, where it
    is damaged or not for such an image. Raises `Rejection`: `unsupported_format`, `too_large`,
    `too_small`, `truncated`, `undecodable` or `not_finite`; nothing else, short of `MemoryError`.
    """
    if not content:
        raise Rejection(RejectReason.TRUNCATED, "the file is empty")
    name = sniff(content)
    if name is None:
        raise Rejection(RejectReason.UNSUPPORTED_FORMAT, describe_foreign(content))
    try:
        # Pillow warns of odd metadata; whether the pixels are good is what the outcome says.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content, name, limits or ImageLimits())
    except (Rejection, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Rejection(RejectReason.TOO_LARGE, str(error)) from error
    except Exception as error:  # on damaged files Pillow raises any type there is
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
        _check_strips(image, len(content))
        pixels = load_pixels(image, content)
        profile = embedded_profile(image, content) if limits.icc == "apply" else None
        return _finished(pixels, profile, orientation_of(image))


def _decode_wide(content: bytes, tags: tiff.Tags, limits: ImageLimits) -> Image.Image:
    layout = tiff.read_layout(content, tags)
    _check_size(layout.size, limits)
    pixels = tiff.read_pixels(content, layout)
    profile = bytes(tags.get(tiff.PROFILE, ())) if limits.icc == "apply" else None
    return _finished(pixels, profile or None, parse_orientation(tags.get(tiff.ORIENTATION, 1)))


def _finished(pixels: Image.Image, profile: Any, orientation: int) -> Image.Image:
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


def _check_strips(image: Image.Image, n_bytes: int) -> None:
    """A TIFF's directory may stand before its pixels; libtiff's own error does not say "ends"."""
    tags: Mapping[int, tuple[int, ...]] = getattr(image, "tag_v2", {})
    for offsets, counts in _TIFF_EXTENTS:
        extents = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > n_bytes for offset, count in extents):
            raise Rejection(
                RejectReason.TRUNCATED, f"TIFF of {n_bytes} bytes ends before its pixels do"
            )


def _damaged(content: bytes, name: str, error: Exception) -> Rejection:
    said = str(error) or type(error).__name__
    if is_cut_short(content, name) or "truncated" in said.lower():
        return _ends_early(content, name, said)
    if name == "PSD" and isinstance(error.__cause__, KeyError):
        mode, bits = error.__cause__.args[0]
        said = f"its colour mode {mode} of {bits} bits is not read: save it as PNG or TIFF"
    if name == "JPEG" and has_arithmetic_coding(content):
        said += "; it uses arithmetic coding, which few programs read: save it again without"
    return Rejection(RejectReason.UNDECODABLE, f"{name} cannot be decoded ({said})")


def _ends_early(content: bytes, name: str, said: str) -> Rejection:
    return Rejection(RejectReason.TRUNCATED, f"{name} of {len(content)} bytes ends early ({said})")
