"""Small images in memory, encoded as the tests need them."""

from __future__ import annotations

import io
import struct
from typing import Any
from zlib import compress, crc32

import numpy as np
from PIL import Image


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """`image` as the bytes of a file of format `name`."""
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def picture(width: int = 80, height: int = 96) -> Image.Image:
    """A gradient with seeded noise: no two rows, columns or channels alike."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 200 // width, y * 200 // height, (x + y) * 200 // (width + height)], -1)
    return Image.fromarray((smooth + rng.integers(0, 40, smooth.shape)).astype(np.uint8))


def flat(mode: str, colour: Any, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """One colour everywhere."""
    return Image.new(mode, size, colour)


def png_file(
    width: int, height: int, *, depth: int, colour_type: int, pixels: bytes, key: bytes = b""
) -> bytes:
    """A PNG put together by hand: what Pillow cannot write, or a header that lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    transparent = [chunk(b"tRNS", key)] if key else []
    image = [chunk(b"IDAT", compress(pixels)), chunk(b"IEND", b"")]
    chunks = [chunk(b"IHDR", header), *transparent, *image]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


FILES = {
    "jpeg": encode(picture(), "JPEG"),
    "jpeg_progressive": encode(picture(), "JPEG", progressive=True),
    "jpeg_grey": encode(picture().convert("L"), "JPEG"),
    "jpeg_cmyk": encode(picture().convert("CMYK"), "JPEG"),
    "png": encode(picture(), "PNG"),
    "png_palette": encode(picture().quantize(32), "PNG"),
    "png_rgba": encode(picture().convert("RGBA"), "PNG"),
    "webp": encode(picture(), "WEBP"),
    "webp_lossless": encode(picture(), "WEBP", lossless=True),
    "gif": encode(picture(), "GIF"),
    "tiff": encode(picture(), "TIFF"),
    "tiff_lzw": encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff_float": encode(picture().convert("F"), "TIFF"),
    "bmp": encode(picture(), "BMP"),
}
