"""Small images and files in memory, for tests."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any
from zlib import compress, crc32

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """Return `image` as the bytes of a file of format `name`."""
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def picture(width: int = 80, height: int = 96) -> Image.Image:
    """Return a gradient with seeded noise, without equal rows, columns or channels."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 200 // width, y * 200 // height, (x + y) * 200 // (width + height)], -1)
    return Image.fromarray((smooth + rng.integers(0, 40, smooth.shape)).astype(np.uint8))


def flat(mode: str, colour: Any, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return an image of one colour."""
    return Image.new(mode, size, colour)


def png_file(
    width: int, height: int, *, depth: int, colour_type: int, pixels: bytes, key: bytes = b""
) -> bytes:
    """Return a PNG that Pillow cannot write, or one with a wrong header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    transparent = [chunk(b"tRNS", key)] if key else []
    image = [chunk(b"IDAT", compress(pixels)), chunk(b"IEND", b"")]
    chunks = [chunk(b"IHDR", header), *transparent, *image]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def heif_file(image: Image.Image, **options: Any) -> bytes:
    """Return a HEIC file, lossless unless `quality` is given."""
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, **{"quality": -1, "chroma": 444, **options})
    return stream.getvalue()


def psd_file(image: Image.Image, *, profile: bytes = b"", layers: int = 0, depth: int = 8) -> bytes:
    """Return a Photoshop document with only the merged image and a count of layers."""
    modes = {"L": 1, "RGB": 3, "RGBA": 3, "CMYK": 4}
    planes = image.split()
    header = struct.pack(
        ">4sH6xHIIHH", b"8BPS", 1, len(planes), *image.size[::-1], depth, modes[image.mode]
    )
    resources = struct.pack(">4sHHI", b"8BIM", 1039, 0, len(profile)) + profile
    resources = resources + bytes(len(profile) % 2) if profile else b""
    section = struct.pack(">Ih2x", 4, layers) if layers else b""
    # Photoshop stores inks inverted.
    body = b"".join(
        plane.point(lambda level: 255 - level).tobytes()
        if image.mode == "CMYK"
        else plane.tobytes()
        for plane in planes
    )
    parts = (b"", resources, section)
    return (
        header + b"".join(struct.pack(">I", len(part)) + part for part in parts) + bytes(2) + body
    )


def jp2_with_profile(image: Image.Image, profile: bytes) -> bytes:
    """Return a JPEG 2000 file whose colour box holds an ICC profile."""
    content = encode(image, "JPEG2000")
    colour = b"colr\x02\x00\x00" + profile
    place = content.index(b"colr") - 4
    (old,) = struct.unpack_from(">I", content, place)
    box = struct.pack(">I", len(colour) + 4) + colour
    head = content.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", content, head)
    sized = content[:head] + struct.pack(">I", size + len(box) - old) + content[head + 4 : place]
    return sized + box + content[place + old :]


def netpbm_file(kind: str, values: NDArray[Any], maxval: int = 255) -> bytes:
    """Return a PGM or PPM (`P5`, `P6`), in digits (`P2`, `P3`), or a PAM (`P7`)."""
    height, width = values.shape[:2]
    if kind == "P7":
        depth = values.shape[2]
        fields = f"WIDTH {width}\nHEIGHT {height}\nDEPTH {depth}\nMAXVAL {maxval}\n"
        header = f"P7\n# made by hand\n{fields}TUPLTYPE ANY\nENDHDR\n"
    else:
        header = f"{kind}\n# made by hand\n{width} {height}\n{maxval}\n"
    if kind in ("P2", "P3"):
        return header.encode() + " ".join(map(str, values.ravel().tolist())).encode() + b"\n"
    return header.encode() + values.astype(">u2" if maxval > 255 else np.uint8).tobytes()


def pfm_file(values: NDArray[np.float32], *, order: str = "<") -> bytes:
    """Return a PFM of grey [h, w] or colours [h, w, 3], with rows from the bottom up."""
    height, width = values.shape[:2]
    scale = -1 if order == "<" else 1
    header = f"{'PF' if values.ndim == 3 else 'Pf'}\n{width} {height}\n{scale}.0\n"
    return header.encode() + values[::-1].astype(f"{order}f4").tobytes()


def tiff_file(
    values: NDArray[Any],  # [height, width, samples]
    *,
    compression: int = 1,  # 1 none, 5 LZW, 8 deflate
    predictor: int = 1,  # 1 none, 2 horizontal, 3 floating point
    tile: tuple[int, int] | None = None,  # width, height
    rows: int = 7,  # per strip
    planar: bool = False,
    order: str = "<",
    photometric: int = 2,
    extra: tuple[int, ...] = (),
    tags: dict[int, tuple[int, ...]] | None = None,  # SHORTs
    profile: bytes = b"",
) -> bytes:
    """Return a TIFF of integers or floats of any width, also kinds that Pillow cannot write."""
    height, width, samples = values.shape
    across, down = tile or (width, rows)
    planes = np.split(values, samples, axis=2) if planar else [values]
    chunks = [
        _tiff_chunk(
            _padded(plane[y : y + down, x : x + across], tile), compression, predictor, order
        )
        for plane in planes
        for y in range(0, height, down)
        for x in range(0, width, across)
    ]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    places, counts = (324, 325) if tile else (273, 279)
    layout = {322: ("H", (across,)), 323: ("H", (down,))} if tile else {278: ("I", (down,))}
    offsets = [8]
    for chunk in chunks:
        offsets.append(offsets[-1] + len(chunk))
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (values.dtype.itemsize * 8,) * samples),
        259: ("H", (compression,)),
        262: ("H", (photometric,)),
        places: ("I", tuple(offsets[:-1])),
        277: ("H", (samples,)),
        counts: ("I", tuple(map(len, chunks))),
        284: ("H", (2 if planar else 1,)),
        317: ("H", (predictor,)),
        **layout,
        **({338: ("H", extra)} if extra else {}),
        339: ("H", (kind,) * samples),
        **({34675: ("B", tuple(profile))} if profile else {}),
        **{tag: ("H", numbers) for tag, numbers in (tags or {}).items()},
    }
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    header = mark + struct.pack(f"{order}I", offsets[-1])
    return header + b"".join(chunks) + _tiff_directory(entries, offsets[-1], order)


def _tiff_directory(
    entries: dict[int, tuple[str, tuple[int, ...]]], start: int, order: str
) -> bytes:
    directory, behind = struct.pack(f"{order}H", len(entries)), b""
    place = start + 2 + 12 * len(entries) + 4
    for tag, (code, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        kind = {"B": 7, "H": 3, "I": 4}[code]
        if len(packed) > 4:
            packed, behind = struct.pack(f"{order}I", place + len(behind)), behind + packed
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\x00")
    return directory + bytes(4) + behind


def _padded(values: NDArray[Any], tile: tuple[int, int] | None) -> NDArray[Any]:
    if tile is None:
        return values
    width, height = tile
    missing = ((0, height - values.shape[0]), (0, width - values.shape[1]), (0, 0))
    return np.pad(values, missing)


def _tiff_chunk(values: NDArray[Any], compression: int, predictor: int, order: str) -> bytes:
    height, _, samples = values.shape
    size = values.dtype.itemsize
    if predictor == 3:
        planes = values.astype(f">f{size}").reshape(height, -1).view(np.uint8)
        planes = planes.reshape(height, -1, size).transpose(0, 2, 1).reshape(height, -1, samples)
        raw = np.diff(planes, axis=1, prepend=np.zeros_like(planes[:, :1])).tobytes()
    else:
        if predictor == 2:
            steps = np.ascontiguousarray(values).view(f"u{size}")
            values = np.diff(steps, axis=1, prepend=np.zeros_like(steps[:, :1]))
        raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return {1: bytes, 5: _lzw, 8: compress}[compression](raw)


def _lzw(raw: bytes) -> bytes:
    """Encode LZW without compression: clear the table before codes need ten bits."""
    codes: list[int] = []
    for start in range(0, len(raw), 250):
        codes += [256, *raw[start : start + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


# 48×40: red grows to the right, green downwards, blue is 40 and then 200; by libjpeg-turbo.
ARITHMETIC_JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00;&K2L=TQ2L}fU2?z=d6b%du3k(?&6Au&}8Xq1V8XO!TBrYc)A}k{u94I"
    "#_EHE)NG&CP4IXyTsJT5adGXL8ELjeg12@DGi7!3^=G9erxGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUG"
    "BPqUGBPqUGBPqUGBPqUGBW?k01*fPC;%`60U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0MhQ_d$$K"
    "XVx-AGq`Nr8svO9Q1cvJbPwD$dUPghP$0-dSVU_knw^>X70E&(2sf_5A2%HCTNhS)|r9wn|3=YA4Avpou^^ZX>N@"
    ")yP?1`Om+uPMjdpkutG%Gpz+eNs)(28IRJ}$W?DYB#g0HvgsAfe?$1%WDwoqcJNS6H%swiSXz?hjn;!2j6"
)

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
    "tiff_float_rgb": tiff_file(np.asarray(picture()) / np.float32(255)),
    "tiff_float_deflate": tiff_file(
        np.asarray(picture()) / np.float32(255), compression=8, predictor=3
    ),
    "tiff_big": encode(picture(), "TIFF", big_tiff=True),
    "bmp": encode(picture(), "BMP"),
    "avif": encode(picture(), "AVIF", quality=90),
    "heif": heif_file(picture()),
    "jp2": encode(picture(), "JPEG2000"),
    "j2k": encode(picture(), "JPEG2000", no_jp2=True),
    "ppm": encode(picture(), "PPM"),
    "ppm_plain": netpbm_file("P3", np.asarray(picture())),
    "ppm_16": netpbm_file("P6", np.asarray(picture()).astype(int) * 257, 65535),
    "ppm_pam": netpbm_file("P7", np.asarray(picture())),
    "ppm_pfm": pfm_file(np.asarray(picture()).astype(np.float32) / 255),
    "tga": encode(picture(), "TGA"),
    "tga_rle": encode(picture(), "TGA", compression="tga_rle"),
    "psd": psd_file(picture()),
}
