"""Images: damaged files of every format that is read, and files that lie about their size."""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from pipeline.images import ImageLimits, decode
from tests.fuzz.kind import BrokenPromiseError, Case, Kind
from tests.fuzz.mutate import mutated, place
from tests.images.encoded import encode, picture, png_file

FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "bmp")
LIMITS = ImageLimits(max_pixels=2_000_000)
# Pillow holds four bytes a pixel, twice while it converts or turns; float TIFFs are widened once
# more. Measured on the bombs below: 26 bytes a pixel at the worst.
BOMB_MIB = 2048


def _variants(name: str) -> list[dict[str, Any]]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    again = {"save_all": True, "append_images": [picture().rotate(90)]}
    variants: dict[str, list[dict[str, Any]]] = {
        "jpeg": [{}, {"progressive": True}, {"exif": exif}, {"quality": 100, "subsampling": 0}],
        "png": [{}, {"exif": exif}, again],
        "webp": [{}, {"lossless": True}, {"exif": exif}, again],
        "gif": [{}, again],
        "tiff": [
            *({"compression": f"tiff_{name}"} for name in ("lzw", "adobe_deflate")),
            *({"compression": name} for name in ("jpeg", "packbits")),
            *({}, {"exif": exif}, {"tiffinfo": {322: 16, 323: 16}}, again),
        ],
        "bmp": [{}],
    }
    return variants[name]


_MODES = {
    "jpeg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"),
    "webp": ("RGB", "RGBA"),
    "gif": ("P", "L", "1"),
    "tiff": ("RGB", "L", "P", "RGBA", "CMYK", "1", "I", "F", "I;16", "YCbCr", "LAB"),
    "bmp": ("RGB", "L", "P", "1", "RGBA"),
}


def _in_mode(mode: str) -> Image.Image:
    image = picture()
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda level: level * 257).convert("I;16")
    return image.convert(mode)


@functools.cache
def corpus(name: str) -> tuple[bytes, ...]:
    """Whole files of one format: every pixel mode and option that it is written with."""
    found = []
    for mode in _MODES[name]:
        for options in _variants(name):
            try:
                found.append(encode(_in_mode(mode), name.upper(), **options))
            except (OSError, ValueError, RuntimeError, SystemError):
                continue  # a combination that the format does not have
    return tuple(found)


def _make(name: str, draw: Random) -> Case:
    files = corpus(name)
    content = draw.choice(files)
    if draw.random() < 0.15:  # the head of one file on the tail of another
        other = draw.choice(files)
        content = content[: place(draw, len(content))] + other[place(draw, len(other)) :]
    content = mutated(draw, content)
    if name == "png" and draw.random() < 0.6:
        content = with_checksums(content)
    return {f"image.{name}": content}


def with_checksums(content: bytes) -> bytes:
    """A damaged PNG with right checksums, so that the damage gets past the first look."""
    found, start = bytearray(content), 8
    while start + 12 <= len(found):
        (length,) = struct.unpack_from(">I", found, start)
        end = start + 8 + length
        if end + 4 > len(found):
            break
        struct.pack_into(">I", found, end, zlib.crc32(found[start + 4 : end]))
        start = end + 4
    return bytes(found)


def _run(limits: ImageLimits | None, case: Case, _: Path) -> str:
    (content,) = case.values()
    image = decode(content, limits)
    width, height = image.size
    most = (limits or ImageLimits()).max_pixels
    if image.mode != "RGB" or width * height > most or len(image.tobytes()) != 3 * width * height:
        raise BrokenPromiseError(f"decoded to {image.mode} of {width}×{height}")
    return "row"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_bomb(draw: Random) -> bytes:
    """A few kilobytes that unpack to all the pixels that are let through, or more."""
    side = draw.choice((4000, 8000, 8001, 30_000, 2**31 - 1))
    depth, colour, size = draw.choice(((8, 2, 3), (8, 6, 4), (16, 6, 8), (16, 0, 2), (8, 3, 1)))
    pixels = b"\0" * min(side * (side * size + 1), 40_000_000) if side < 5000 else b""
    return png_file(side, side, depth=depth, colour_type=colour, pixels=pixels)


def _text_bomb(draw: Random) -> bytes:
    """Compressed metadata that unpacks to far more than the image."""
    content = corpus("png")[0]
    packed = zlib.compress(b"\0" * draw.choice((1_000_000, 60_000_000)))
    kind, head = draw.choice(((b"zTXt", b"k\0\0"), (b"iCCP", b"p\0\0"), (b"iTXt", b"k\0\1\0\0\0")))
    return content[:33] + _chunk(kind, head + packed) * draw.choice((1, 3)) + content[33:]


def _gif_bomb(draw: Random) -> bytes:
    """A small frame in a huge canvas, or a canvas that its frame sticks out of."""
    content = bytearray(corpus("gif")[0])
    sides = struct.pack("<HH", draw.choice((1, 8000, 65535)), draw.choice((1, 8000, 65535)))
    content[6:10] = sides
    if draw.random() < 0.5 and (frame := content.find(b",", 13)) > 0:
        content[frame + 1 : frame + 9] = struct.pack("<HH", 0, 0) + sides
    return bytes(content)


def _tiff_bomb(draw: Random) -> bytes:
    """A directory that claims sizes, samples, strips and counts that the file does not hold."""
    claims = {
        256: (4, 1, draw.choice((80, 8000, 65_535, 2**31 - 1))),
        257: (4, 1, draw.choice((96, 8000, 65_535, 2**31 - 1))),
        258: (3, 1, draw.choice((1, 8, 16, 32, 64))),
        259: (3, 1, draw.choice((1, 5, 7, 8, 32773, 34712, 50000))),
        262: (3, 1, draw.choice((0, 1, 2, 5, 6, 8))),
        273: (4, draw.choice((1, 1000, 2**28)), 8),
        277: (3, 1, draw.choice((1, 3, 4, 65_535))),
        278: (4, 1, draw.choice((0, 1, 8000, 2**32 - 1))),
        279: (4, draw.choice((1, 1000, 2**28)), 0),
        339: (3, 1, draw.choice((1, 2, 3))),
    }
    body = struct.pack("<H", len(claims))
    for tag, (kind, count, value) in claims.items():
        body += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0\x08\0\0\0" + body + b"\0\0\0\0" + draw.randbytes(400)


def _jpeg_bomb(draw: Random) -> bytes:
    """A header of the largest size that a JPEG has, progressive ones with their scans repeated."""
    progressive = draw.random() < 0.5
    content = bytearray(encode(picture(), "JPEG", progressive=progressive))
    start = content.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(
        ">HH", *(draw.choice((96, 4000, 8000, 65_535)) for _ in range(2))
    )
    scan = content.find(b"\xff\xda")
    return bytes(content[:-2] + content[scan:-2] * draw.choice((1, 50)) + b"\xff\xd9")


def _webp_bomb(draw: Random) -> bytes:
    """A canvas of up to 16383 pixels a side around a small picture."""
    body = corpus("webp")[0][12:]
    side = draw.choice((95, 7999, 16_382, 2**24 - 1))
    canvas = struct.pack("<I", draw.choice((0, 2, 0x10)))[:4] + side.to_bytes(3, "little") * 2
    chunks = b"VP8X" + struct.pack("<I", len(canvas)) + canvas + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _bmp_bomb(draw: Random) -> bytes:
    """Sizes, bit depths and run lengths that the file does not hold."""
    content = bytearray(corpus("bmp")[draw.randrange(len(corpus("bmp")))])
    sides = [draw.choice((96, 8000, 2**31 - 1, -8000, 0)) for _ in range(2)]
    content[18:26] = struct.pack("<ii", *sides)
    content[28:30] = struct.pack("<H", draw.choice((1, 4, 8, 16, 24, 32)))
    content[30:34] = struct.pack("<I", draw.choice((0, 1, 2, 3)))
    return bytes(content)


_BOMBS = (_png_bomb, _text_bomb, _gif_bomb, _tiff_bomb, _jpeg_bomb, _webp_bomb, _bmp_bomb)


def _make_bomb(draw: Random) -> Case:
    content = draw.choice(_BOMBS)(draw)
    return {"image.bin": mutated(draw, content, most=2) if draw.random() < 0.2 else content}


KINDS = [
    *(
        Kind(name, functools.partial(_make, name), functools.partial(_run, LIMITS), share=12)
        for name in FORMATS
    ),
    Kind(
        "bomb", _make_bomb, functools.partial(_run, None), share=1, limit_s=60, memory_mib=BOMB_MIB
    ),
]
