"""Pillow's image of a file, its pixels not decoded yet, with what its decoders need to be told."""

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
_MOST_SEGMENTS = 10_000


def open_image(content: bytes, name: str) -> Image.Image:
    """The first image of `content`, a file of format `name`.

    Raises `Rejection` where the package that reads it is missing, and any exception there is where
    the file is damaged.
    """
    # The plugin is called directly: `Image.open` would add a pixel limit of its own, which warns
    # at one size and raises at another, whatever limit was asked for.
    image: Image.Image = _plugin(name)(io.BytesIO(content), "")
    if name == "JPEG" and has_arithmetic_coding(content):
        # libjpeg's arithmetic decoder cannot wait for more input, as its others can.
        setattr(image, "decodermaxblock", len(content))  # noqa: B010 - of ImageFile, not of Image
    return image


def load_pixels(image: Image.Image, content: bytes) -> Image.Image:
    """The decoded pixels of an open image, in any of Pillow's modes."""
    image.load()
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        # Adobe's programs store inks inverted and say so by their marker. Pillow takes all files
        # for theirs; without the marker 0 is no ink (ITU-T T.872).
        return ImageChops.invert(image)
    if image.format == "TGA" and image.mode == "RGBA" and _has_no_alpha(image, content):
        return image.convert("RGB")
    if image.format == "PSD" and image.mode == "RGBA" and not _merged_with_alpha(image, content):
        return image.convert("RGB")
    return image


def embedded_profile(image: Image.Image, content: bytes) -> Any:
    """The ICC profile of an image: bytes, None where there is none, or what Pillow could not read.

    Pillow passes over those of JPEG 2000.
    """
    if image.format == "JPEG2000":
        return _jp2_profile(content)
    if "icc_profile" not in image.info:
        return None
    return image.info["icc_profile"] or ()


def has_arithmetic_coding(content: bytes) -> bool:
    """Whether a JPEG's frame is coded arithmetically, by its first frame header."""
    place = 2
    for _ in range(_MOST_SEGMENTS):
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
    # One thread each: the pool of aligners has one process for each core.
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
    """Whether the fourth channel of a TGA is unused: its header says so, or it is zero all over."""
    return not content[17] & 0x0F or image.getchannel("A").getextrema() == (0, 0)


def _merged_with_alpha(image: Image.Image, content: bytes) -> bool:
    """Whether the fourth channel of a PSD is transparency, not a saved selection.

    A negative count of layers says that the first extra channel holds that of the merged image.
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
