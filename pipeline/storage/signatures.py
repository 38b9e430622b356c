"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import re
import struct

# A name says nothing: half of the `.jpg` files of a crawl are PNG or WebP.
_SIGNATURES = (
    ("JPEG", b"\xff\xd8"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("TIFF", b"II+\x00\x08\x00\x00\x00"),  # BigTIFF: offsets of 8 bytes
    ("TIFF", b"MM\x00+\x00\x08\x00\x00"),
    ("BMP", b"BM"),
    ("JPEG2000", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    ("JPEG2000", b"\xff\x4f\xff\x51"),  # a codestream without its box file
    ("PSD", b"8BPS\x00\x01"),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF_CONTAINERS = {b"mif1", b"msf1"}  # of any codec; the compatible brands name which
_MAX_BRANDS = 64
# "P6 640 480": a magic of two characters alone would take texts for images.
_NETPBM = re.compile(
    rb"P[1-6Ff]\s+(?:#[^\r\n]*[\r\n]\s*)*\d|P7\s*\n(?:#|WIDTH|HEIGHT|DEPTH|MAXVAL|TUPL)"
)
_NETPBM_SEARCHED = 1024
_TGA_HEADER = struct.Struct("<BBBHHBHHHHBB")
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_TGA_MAPPED, _TGA_DEPTHS = (1, 9), {2: (16, 24, 32), 3: (1, 8, 16), 10: (16, 24, 32), 11: (8, 16)}


def sniff(content: bytes) -> str | None:
    """Pillow's name of the format that `content` begins like, or None if it is not read here.

    The first 1024 bytes suffice, except for a TGA with an unusual header, which is known by the
    footer at its end.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    for name, signature in _SIGNATURES:
        if content.startswith(signature):
            return name
    if content[4:8] == b"ftyp":
        return _codec_of(brands(content))
    if _NETPBM.match(content, 0, _NETPBM_SEARCHED):
        return "PPM"
    return "TGA" if _is_tga(content) else None


def brands(content: bytes) -> list[bytes]:
    """The brands of an ISO media file (HEIC, AVIF, MP4, ...), the major one first."""
    length = min(struct.unpack(">I", content[:4])[0], 16 + 4 * _MAX_BRANDS)
    listed = [content[8:12], *(content[at : at + 4] for at in range(16, length, 4))]
    return [brand for brand in listed if len(brand) == 4]


def _codec_of(found: list[bytes]) -> str | None:
    """A file of several brands is what its first one says; `mif1` leaves it to the next."""
    for brand in found:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIF_BRANDS:
            return "HEIF"
        if brand not in _HEIF_CONTAINERS and brand == found[0]:
            return None  # a video, whatever else it may be compatible with
    return "HEIF" if found else None


def _is_tga(content: bytes) -> bool:
    """TGA has no signature: a header in which every field is as the format has it, or a footer."""
    if len(content) < _TGA_HEADER.size:
        return False
    _, has_map, kind, first, entries, entry_bits, _, _, width, height, depth, flags = (
        _TGA_HEADER.unpack_from(content)
    )
    if kind in _TGA_MAPPED:
        mapped = has_map == 1 and depth == 8 and 0 < first + entries <= 256
        fields = mapped and entry_bits in (15, 16, 24, 32)
    else:
        # Most writers leave the fields of the missing map at zero; the others have the footer.
        unmapped = has_map == 0 and (first, entries, entry_bits) == (0, 0, 0)
        known = depth in _TGA_DEPTHS.get(kind, ())
        fields = known and (unmapped or (has_map <= 1 and content.endswith(_TGA_FOOTER)))
    return bool(fields and width and height and not flags & 0xC0 and flags & 0x0F in (0, 1, 8))
