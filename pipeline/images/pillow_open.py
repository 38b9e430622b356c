"""Open and load images with Pillow's decoders, with corrections for what they misread."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

from PIL import AvifImagePlugin, Image, ImageChops

from pipeline.images.formats import boxes
from pipeline.images.rejects import Rejection, RejectReason

HEIC_INSTALL = "pip install 'restyle-pipeline[heic]'"
_ARITHMETIC = tuple(bytes((0xFF, marker)) for marker in (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_MAX_SEGMENTS = 10_000


def open_image(content: bytes, name: str) -> Image.Image:
    """Open the first image of `content`, a file of format `name`, without decoding its pixels.

    Raises `Rejection` if the package for this format is missing, and any exception if the file is
    damaged.
    """
    # The plugin is called directly: `Image.open` has its own pixel limits, independent of ours.
    image: Image.Image = _plugin(name)(io.BytesIO(content), "")
    if name == "JPEG" and has_arithmetic_coding(content):
        # Unlike its other decoders, libjpeg's arithmetic decoder needs all input at once.
        setattr(image, "decodermaxblock", len(content))  # noqa: B010 - of ImageFile, not of Image
    return image


def load_pixels(image: Image.Image, content: bytes) -> Image.Image:
    """Return the decoded pixels of an open image, in any of Pillow's modes."""
    image.load()
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        # Adobe's programs store inverted inks and write a marker. Pillow assumes this for all
        # files; without the marker 0 means no ink (ITU-T T.872).
        return ImageChops.invert(image)
    if image.format == "TGA" and image.mode == "RGBA" and _has_no_alpha(image, content):
        return image.convert("RGB")
    if image.format == "PSD" and image.mode == "RGBA" and not _merged_with_alpha(image, content):
        return image.convert("RGB")
    return image


def embedded_profile(image: Image.Image, content: bytes) -> Any:
    """Return the ICC profile of an image: bytes, None, or `()` if Pillow could not read it.

    Pillow does not read profiles of JPEG 2000.
    """
    if image.format == "JPEG2000":
        return _jp2_profile(content)
    if "icc_profile" not in image.info:
        return None
    return image.info["icc_profile"] or ()


def has_arithmetic_coding(content: bytes) -> bool:
    """Return whether a JPEG is arithmetic-coded, by its first frame header."""
    place = 2
    for _ in range(_MAX_SEGMENTS):
        if content[place : place + 1] != b"\xff":
            return False
        marker = content[place : place + 2]
        if marker == b"\xff\xff":  # padding
            place += 1
        elif marker in _ARITHMETIC:
            return True
        elif b"\xff\xc0" <= marker <= b"\xff\xc3" or marker in (b"\xff\xda", b"\xff"):
            return False
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _plugin(name: str) -> Callable[[io.BytesIO, str], Image.Image]:
    if name == "HEIF":
        return _heif_plugin()
    Image.init()
    # One thread per decoder: there is one aligner process per core.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    plugin, _ = Image.OPEN[name]
    return plugin


@functools.cache
def _heif_plugin() -> Callable[[io.BytesIO, str], Image.Image]:
    try:
        import _pillow_heif  # noqa: F401 - pillow_heif itself imports without its library
        from pillow_heif import options
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise Rejection(
            RejectReason.UNSUPPORTED_FORMAT,
            f"it is a HEIC image, which pillow-heif reads: {HEIC_INSTALL} on every node",
        ) from error
    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    return HeifImageFile


def _has_no_alpha(image: Image.Image, content: bytes) -> bool:
    """Return whether a TGA's fourth channel is unused: by its header, or because it is all zero."""
    return not content[17] & 0x0F or image.getchannel("A").getextrema() == (0, 0)


def _merged_with_alpha(image: Image.Image, content: bytes) -> bool:
    """Return whether a PSD's fourth channel is transparency and not a saved selection.

    A negative layer count means that the first extra channel is the merged image's transparency.
    """
    place = getattr(image, "_layers_position", None)
    if place is None:
        return False
    return int.from_bytes(content[place : place + 2], "big", signed=True) < 0


def _jp2_profile(content: bytes) -> bytes | None:
    for kind, body, end in boxes(content):
        if kind == b"jp2h":
            for inner, start, stop in boxes(content, body, min(end, len(content))):
                if inner == b"colr" and content[start : start + 1] in (b"\x02", b"\x03"):
                    return content[start + 3 : stop]
    return None
