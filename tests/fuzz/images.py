"""Images as bad input: damaged files of every format, and files with false sizes."""

from __future__ import annotations

import functools
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images import ImageLimits, Rejection, decode
from tests.fuzz.kind import BrokenPromiseError, Case, Kind
from tests.fuzz.mutate import mutated, place
from tests.images.encoded import (
    encode,
    heif_file,
    netpbm_file,
    pfm_file,
    picture,
    png_file,
    psd_file,
    tiff_file,
)
from tests.images.icc_profiles import (
    D50,
    DISPLAY_P3,
    PROPHOTO,
    cmyk_profile,
    gamma,
    grey_profile,
    rgb_profile,
)

FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "bmp")
NEWER_FORMATS = ("avif", "heif", "jp2", "j2k", "pnm", "tga", "psd", "widetiff")
LIMITS = ImageLimits(max_pixels=2_000_000)
# Pillow needs four bytes per pixel, twice while it converts or rotates; float TIFFs are widened
# once more, JPEG 2000 has four bytes per sample. Measured on the bombs below: at most 36 bytes per
# pixel.
BOMB_MIB = 3072


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
        "avif": [{"speed": 10}, {"speed": 10, "exif": exif, "quality": 95}, {"speed": 10, **again}],
        "heif": [{}, {"exif": exif.tobytes()}, {"quality": 50, "chroma": 420}],
        "jp2": [{}, {"irreversible": True, "tile_size": (32, 32)}, {"num_resolutions": 2}],
        "j2k": [{"no_jp2": True}, {"no_jp2": True, "progression": "RLCP"}],
        "tga": [{}, {"compression": "tga_rle"}, {"orientation": 1, "id_section": b"text"}],
    }
    return variants[name]


_MODES = {
    "jpeg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"),
    "webp": ("RGB", "RGBA"),
    "gif": ("P", "L", "1"),
    "tiff": ("RGB", "L", "P", "RGBA", "CMYK", "1", "I", "F", "I;16", "YCbCr", "LAB"),
    "bmp": ("RGB", "L", "P", "1", "RGBA"),
    "avif": ("RGB", "RGBA", "L"),
    "heif": ("RGB", "RGBA", "L"),
    "jp2": ("RGB", "RGBA", "L", "LA", "I;16"),
    "j2k": ("RGB", "L"),
    "tga": ("RGB", "L", "P", "1", "RGBA", "LA"),
}
_PILLOW_NAMES = {"jp2": "JPEG2000", "j2k": "JPEG2000"}


def _in_mode(mode: str) -> Image.Image:
    image = picture()
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda level: level * 257).convert("I;16")
    return image.convert(mode)


@functools.cache
def corpus(name: str) -> tuple[bytes, ...]:
    """Return valid files of one format, in every pixel mode and with every option."""
    if name in _BY_HAND:
        return tuple(_BY_HAND[name]())
    files = []
    for mode in _MODES[name]:
        for options in _variants(name):
            try:
                files.append(_encoded(_in_mode(mode), name, options))
            except (OSError, ValueError, RuntimeError, SystemError):
                continue  # a combination that the format does not have
    return tuple(files)


def _encoded(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    if name == "heif":
        return heif_file(image, **options)
    return encode(image, _PILLOW_NAMES.get(name, name.upper()), **options)


def _pnm_files() -> Iterator[bytes]:
    pixels = np.asarray(picture())
    for kind, maxval in itertools.product(("P3", "P6", "P7"), (100, 255, 1000, 65535)):
        yield netpbm_file(kind, pixels * (maxval / 255), maxval)
    yield from (netpbm_file(kind, pixels[..., 0]) for kind in ("P2", "P5"))
    yield encode(picture().convert("1"), "PPM")
    yield b"P1 80 96\n" + b"10" * (40 * 96)
    for order, values in itertools.product("<>", (pixels, pixels[..., 0])):
        yield pfm_file(values / np.float32(255), order=order)


def _psd_files() -> Iterator[bytes]:
    for mode in ("L", "RGB", "RGBA", "CMYK"):
        yield psd_file(picture().convert(mode), layers=-1, profile=rgb_profile(DISPLAY_P3))


def _wide_tiffs() -> Iterator[bytes]:
    pixels = np.asarray(picture())
    layouts: tuple[dict[str, Any], ...] = ({}, {"tile": (32, 16)}, {"planar": True})
    for (kind, predictor), compression, order, layout in itertools.product(
        (("f4", 1), ("f8", 3), ("f2", 3), ("u2", 2), ("u4", 2)), (1, 5, 8), "<>", layouts
    ):
        values = pixels / 255 if kind.startswith("f") else pixels
        options = {"predictor": predictor, "compression": compression, "order": order}
        yield tiff_file(values.astype(kind), **options, **layout)
    alpha = np.dstack([pixels, pixels[..., 0]]) / np.float32(255)
    yield from (tiff_file(alpha, extra=(kind,)) for kind in (0, 1, 2))


_BY_HAND = {"pnm": _pnm_files, "psd": _psd_files, "widetiff": _wide_tiffs}


def _make_profile(draw: Random) -> Case:
    """Return a valid picture with a damaged colour profile, which must still be decoded."""
    mode, profile = draw.choice(_PROFILES)
    damaged = mutated(draw, profile, most=draw.choice((1, 3, 20)))
    name = draw.choice(("JPEG", "PNG", "TIFF") if mode == "RGB" else ("JPEG", "TIFF"))
    return {"image.bin": encode(picture().convert(mode), name, icc_profile=damaged or b"x")}


def _run_profile(case: Case, folder: Path) -> str:
    try:
        return _run(LIMITS, case, folder)
    except Rejection as error:
        raise BrokenPromiseError(f"a damaged profile made its picture a reject: {error}") from error


_PROFILES = (
    ("RGB", rgb_profile(DISPLAY_P3)),
    ("RGB", rgb_profile(PROPHOTO, gamma(1.8), white=D50)),
    ("L", grey_profile(gamma(1.0))),
    ("CMYK", cmyk_profile(lambda inks: 50 * inks[:, :3])),
)


def _make(name: str, draw: Random) -> Case:
    files = corpus(name)
    content = draw.choice(files)
    if draw.random() < 0.15:  # the head of one file and the tail of another
        other = draw.choice(files)
        content = content[: place(draw, len(content))] + other[place(draw, len(other)) :]
    content = mutated(draw, content)
    if name == "png" and draw.random() < 0.6:
        content = with_checksums(content)
    return {f"image.{name}": content}


def with_checksums(content: bytes) -> bytes:
    """Return a damaged PNG with valid checksums, so that decoding goes past the first check."""
    repaired, start = bytearray(content), 8
    while start + 12 <= len(repaired):
        (length,) = struct.unpack_from(">I", repaired, start)
        end = start + 8 + length
        if end + 4 > len(repaired):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(repaired[start + 4 : end]))
        start = end + 4
    return bytes(repaired)


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
    """Return a few kilobytes that unpack to the largest accepted image, or more."""
    side = draw.choice((4000, 8000, 8001, 30_000, 2**31 - 1))
    depth, colour, size = draw.choice(((8, 2, 3), (8, 6, 4), (16, 6, 8), (16, 0, 2), (8, 3, 1)))
    pixels = b"\0" * min(side * (side * size + 1), 40_000_000) if side < 5000 else b""
    return png_file(side, side, depth=depth, colour_type=colour, pixels=pixels)


def _text_bomb(draw: Random) -> bytes:
    """Return an image whose compressed metadata unpacks to far more than its pixels."""
    content = corpus("png")[0]
    packed = zlib.compress(b"\0" * draw.choice((1_000_000, 60_000_000)))
    kind, head = draw.choice(((b"zTXt", b"k\0\0"), (b"iCCP", b"p\0\0"), (b"iTXt", b"k\0\1\0\0\0")))
    return content[:33] + _chunk(kind, head + packed) * draw.choice((1, 3)) + content[33:]


def _gif_bomb(draw: Random) -> bytes:
    """Return a small frame in a huge canvas, or a canvas that is smaller than its frame."""
    content = bytearray(corpus("gif")[0])
    sides = struct.pack("<HH", draw.choice((1, 8000, 65535)), draw.choice((1, 8000, 65535)))
    content[6:10] = sides
    if draw.random() < 0.5 and (frame := content.find(b",", 13)) > 0:
        content[frame + 1 : frame + 9] = struct.pack("<HH", 0, 0) + sides
    return bytes(content)


def _tiff_bomb(draw: Random) -> bytes:
    """Return a directory with sizes, samples, strips and counts beyond the file's content."""
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
    """Return a header with the largest size of a JPEG; progressive ones repeat their scans."""
    progressive = draw.random() < 0.5
    content = bytearray(encode(picture(), "JPEG", progressive=progressive))
    start = content.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(
        ">HH", *(draw.choice((96, 4000, 8000, 65_535)) for _ in range(2))
    )
    scan = content.find(b"\xff\xda")
    return bytes(content[:-2] + content[scan:-2] * draw.choice((1, 50)) + b"\xff\xd9")


def _webp_bomb(draw: Random) -> bytes:
    """Return a canvas of up to 16383 pixels per side around a small picture."""
    body = corpus("webp")[0][12:]
    side = draw.choice((95, 7999, 16_382, 2**24 - 1))
    canvas = struct.pack("<I", draw.choice((0, 2, 0x10)))[:4] + side.to_bytes(3, "little") * 2
    chunks = b"VP8X" + struct.pack("<I", len(canvas)) + canvas + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _bmp_bomb(draw: Random) -> bytes:
    """Return a file with sizes, bit depths and run lengths beyond its content."""
    content = bytearray(corpus("bmp")[draw.randrange(len(corpus("bmp")))])
    sides = [draw.choice((96, 8000, 2**31 - 1, -8000, 0)) for _ in range(2)]
    content[18:26] = struct.pack("<ii", *sides)
    content[28:30] = struct.pack("<H", draw.choice((1, 4, 8, 16, 24, 32)))
    content[30:34] = struct.pack("<I", draw.choice((0, 1, 2, 3)))
    return bytes(content)


def _jpeg2000_bomb(draw: Random) -> bytes:
    """Return a file with sizes, tiles, channels and depths beyond its content."""
    content = bytearray(corpus(draw.choice(("jp2", "j2k")))[0])
    place = content.find(b"\xff\x4f\xff\x51") + 8
    sides = [draw.choice((80, 7999, 60_000, 2**31)) for _ in range(2)]
    for start, values in ((place, sides), (place + 16, draw.choice((sides, [1, 1], [80, 96])))):
        content[start : start + 8] = struct.pack(">II", *values)
    if (header := content.find(b"ihdr")) > 0 and draw.random() < 0.7:
        content[header + 4 : header + 12] = struct.pack(">II", *sides[::-1])
    return bytes(content)


def _heif_bomb(draw: Random) -> bytes:
    """Return a picture of 4000 pixels declared as small, or a small one declared as large."""
    name = draw.choice(("avif", "heif"))
    content = bytearray(draw.choice(_giants(name)) if draw.random() < 0.3 else corpus(name)[0])
    place = content.find(b"ispe") + 8
    sides = [draw.choice((80, 7999, 16_384, 2**31 - 1)) for _ in range(2)]
    content[place : place + 8] = struct.pack(">II", *sides)
    return bytes(content)


@functools.cache
def _giants(name: str) -> tuple[bytes, ...]:
    image = Image.new("RGB", (4000, 4000), (10, 200, 30))
    return (_encoded(image, name, _variants(name)[0]),)


def _raw_bomb(draw: Random) -> bytes:
    """Return headers of uncompressed formats with the largest accepted size."""
    side = draw.choice((7999, 30_000, 65_535))
    tga = struct.pack("<BBB9xHHBB", 0, 0, draw.choice((2, 3, 10, 11)), side, side, 24, 0x20)
    psd = b"8BPS\x00\x01" + struct.pack(">6xHIIHH", 3, side, side, 8, 3)
    pnm = f"P{draw.choice('123456fF')} {side} {side} {draw.choice((1, 255, 65535))} ".encode()
    body = draw.choice((bytes(1000), bytes(40_000_000), b"1 " * 1_000_000))
    return draw.choice((tga, psd + bytes(12), pnm)) + body


def _wide_tiff_bomb(draw: Random) -> bytes:
    """Return strips that unpack to more than declared, or to the largest accepted size."""
    side = draw.choice((3000, 7999))
    strip = {"tile": (side, side)} if draw.random() < 0.5 else {"rows": side}
    values = np.zeros((16, 16, 3), draw.choice((np.float32, np.float64)))
    claims = dict.fromkeys((256, 257), (side,))
    options = {"compression": draw.choice((1, 8)), "predictor": draw.choice((1, 3)), "tags": claims}
    return tiff_file(values, **options, **(strip if draw.random() < 0.7 else {}))


_NEWER_BOMBS = (_jpeg2000_bomb, _heif_bomb, _raw_bomb, _wide_tiff_bomb)
_BOMBS = (_png_bomb, _text_bomb, _gif_bomb, _tiff_bomb, _jpeg_bomb, _webp_bomb, _bmp_bomb)


def _make_bomb(bombs: tuple[Callable[[Random], bytes], ...], draw: Random) -> Case:
    content = draw.choice(bombs)(draw)
    return {"image.bin": mutated(draw, content, most=2) if draw.random() < 0.2 else content}


KINDS = [
    *(
        Kind(name, functools.partial(_make, name), functools.partial(_run, LIMITS), share=share)
        for names, share in ((FORMATS, 12), (NEWER_FORMATS, 6))
        for name in names
    ),
    Kind("profile", _make_profile, _run_profile, share=6),
    *(
        Kind(
            name,
            functools.partial(_make_bomb, bombs),
            functools.partial(_run, None),
            share=1,
            limit_s=60,
            memory_mib=BOMB_MIB,
        )
        for name, bombs in (("bomb", _BOMBS), ("newerbomb", _NEWER_BOMBS))
    ),
]
