"""Bytes of unknown origin to upright 8-bit RGB, or to one reason why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from pipeline.images.colour import to_rgb
from pipeline.images.formats import SUPPORTED, is_cut_short
from pipeline.images.rejects import Rejection, RejectReason
from pipeline.storage.signatures import sniff

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_EXTENTS = ((273, 279), (324, 325))  # offsets and byte counts: of strips, of tiles


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be, checked from its header before any pixel is decoded."""

    max_pixels: int = 64_000_000  # width × height; a 17 KB PNG can hold 144 million of them
    min_side: int = 32  # pixels


def decode(content: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """The first frame of `content` (JPEG, PNG, WebP, GIF, TIFF, BMP) as upright 8-bit RGB.

    EXIF orientation is applied, alpha is composited on white, 16-bit samples are scaled.
    Raises `Rejection`: `unsupported_format`, `too_large`, `too_small`, `truncated`, `undecodable`
    or `not_finite`; nothing else, short of `MemoryError`.
    """
    name = sniff(content)
    if not content:
        raise Rejection(RejectReason.TRUNCATED, "the file is empty")
    if name is None:
        start = content[:8].hex(" ")
        raise Rejection(
            RejectReason.UNSUPPORTED_FORMAT, f"begins with {start}, which is none of {SUPPORTED}"
        )
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
    # The plugin is called directly: `Image.open` would add a pixel limit of its own, which warns
    # at one size and raises at another, whatever limit was asked for.
    Image.init()
    plugin, _ = Image.OPEN[name]
    with plugin(io.BytesIO(content), "") as image:
        _check_size(image.size, limits)
        _check_strips(image, len(content))
        image.load()
        return _upright(image, to_rgb(image))


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


def _upright(stored: Image.Image, pixels: Image.Image) -> Image.Image:
    """`pixels` turned by the orientation that `stored` names; loading a TIFF has turned it."""
    try:
        orientation = stored.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - malformed EXIF raises any type, and the pixels are good
        return pixels
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else pixels.transpose(turn)


def _damaged(content: bytes, name: str, error: Exception) -> Rejection:
    said = str(error) or type(error).__name__
    if is_cut_short(content, name) or "truncated" in said.lower():
        return Rejection(
            RejectReason.TRUNCATED, f"{name} of {len(content)} bytes ends early ({said})"
        )
    return Rejection(RejectReason.UNDECODABLE, f"{name} cannot be decoded ({said})")
