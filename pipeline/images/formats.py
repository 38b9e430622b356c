"""Supported image formats: detect truncated files, and describe files of other formats."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping

from pipeline.storage.file_types import brands

SUPPORTED = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, JPEG 2000, PNM, PAM, PFM, TGA, PSD"
# These decoders return half an image for half a file, without an error: check before decoding.
UNSAFE_WHEN_CUT = {"JPEG2000", "AVIF", "HEIF"}
_CODESTREAM = b"\xff\x4f\xff\x51"
_END_OF_CODESTREAM = b"\xff\xd9"  # these two bytes occur in no packet of a codestream

_HEADS, _BODIES = {b"meta", b"moov"}, {b"mdat", b"meta", b"moof"}  # of HEIF files


def is_cut_short(content: bytes, name: str) -> bool:
    """Return whether a file of format `name` lacks its end, by its own sizes and end marks.

    This separates a broken download (worth fetching again) from a damaged file. Of TIFF only the
    directory is checked, which says where the pixels end. Of TGA and PSD only the part before the
    pixels is checked, since their decoders report missing pixels. Netpbm is checked by its reader.
    """
    test = _CUT_SHORT.get(name)
    return test is not None and test(content)


def boxes(
    content: bytes, start: int = 0, end: int | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the body of each box of an ISO media or JP2 file.

    The last body may end after `content`. A box that is smaller than its header ends the iteration.
    """
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop < body:
            return
        yield kind, body, stop
        start = stop


def _boxes_are_missing(content: bytes) -> bool:
    """Return whether the metadata or pixel boxes of an image are missing or end early.

    Phones may append other data, such as a video, not always in boxes.
    """
    kinds = set()
    for kind, _, end in boxes(content):
        if kind in _HEADS | _BODIES:
            kinds.add(kind)
            if end > len(content):
                return True
    return not (kinds & _HEADS and kinds & _BODIES)


def _codestream_is_missing(content: bytes) -> bool:
    """Return whether a JPEG 2000 file ends before the end of its codestream."""
    if content.startswith(_CODESTREAM):
        return _END_OF_CODESTREAM not in content[-1024:]
    end = 0
    for kind, body, end in boxes(content):
        if kind == b"jp2c" and end <= len(content):
            return content.find(_END_OF_CODESTREAM, max(body, end - 1024), end) < 0
    return end >= len(content)


def _sections_are_missing(content: bytes) -> bool:
    """Return whether a Photoshop file ends in its header or three sections, before the pixels."""
    place = 26
    for _ in range(3):
        if place + 4 > len(content):
            return True
        place += 4 + struct.unpack_from(">I", content, place)[0]
    return place + 2 > len(content)


def _tiff_directory_is_missing(content: bytes) -> bool:
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2:4] in (b"+\x00", b"\x00+")
    place, offset, count, entry = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    width, count_width = struct.calcsize(offset), struct.calcsize(count)
    if len(content) < place + width:
        return True
    (start,) = struct.unpack_from(f"{order}{offset}", content, place)
    if start + count_width > len(content):
        return True
    (entries,) = struct.unpack_from(f"{order}{count}", content, start)
    return bool(start + count_width + entry * entries + width > len(content))


def _header_of_tga_is_missing(content: bytes) -> bool:
    """Return whether a TGA ends in its header, its text of up to 255 bytes, or its colour map."""
    if len(content) < 18:
        return True
    mapped = int.from_bytes(content[5:7], "little") * ((content[7] + 7) // 8)
    return len(content) < 18 + content[0] + mapped * content[1]


def _ends_by_size(content: bytes, place: int, header: int, more: int = 0) -> bool:
    """Return whether a file is shorter than the size stored at `place` plus `more`."""
    if len(content) < header:
        return True
    return bool(struct.unpack_from("<I", content, place)[0] + more > len(content))


_CUT_SHORT: Mapping[str, Callable[[bytes], bool]] = {
    "JPEG": lambda content: b"\xff\xd9" not in content[-1024:],  # cameras pad behind the end mark
    "PNG": lambda content: b"IEND" not in content[-1024:],
    "GIF": lambda content: not content.rstrip(b"\x00").endswith(b";"),
    "WEBP": lambda content: _ends_by_size(content, 4, 12, 8),
    "BMP": lambda content: _ends_by_size(content, 2, 26),
    "TIFF": _tiff_directory_is_missing,
    "AVIF": _boxes_are_missing,
    "HEIF": _boxes_are_missing,
    "JPEG2000": _codestream_is_missing,
    "TGA": _header_of_tga_is_missing,
    "PSD": _sections_are_missing,
}

_CONVERT = "convert it to PNG or JPEG first"
_UNPACK = "unpack it, or pack the images as .tar"
_AGAIN = "fetch the image again"
_MAGICS: tuple[tuple[bytes, str, str], ...] = (  # first bytes, description, advice
    (b"%PDF-", "a PDF document", "extract its images first"),
    (b"%!PS", "a PostScript file", _CONVERT),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image", _CONVERT),
    (b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (b"v/1\x01", "an OpenEXR image", f"tone-map it, {_CONVERT}"),
    (b"#?RADIANCE", "a Radiance HDR image", f"tone-map it, {_CONVERT}"),
    (b"II\xbc\x01", "a JPEG XR image", _CONVERT),
    (b"\x00\x00\x01\x00", "a Windows icon", _CONVERT),
    (b"\x00\x00\x02\x00", "a Windows cursor", _CONVERT),
    (b"icns", "a macOS icon", _CONVERT),
    (b"8BPS\x00\x02", "a large Photoshop document (PSB)", _CONVERT),
    (b"gimp xcf", "a GIMP image", _CONVERT),
    (b"qoif", "a QOI image", _CONVERT),
    (b"DDS ", "a DirectDraw texture", _CONVERT),
    (b"BPG\xfb", "a BPG image", _CONVERT),
    (b"SIMPLE  =", "a FITS image", _CONVERT),
    (b"FUJIFILMCCD-RAW", "a camera raw file (RAF)", "develop it to JPEG, PNG or TIFF first"),
    *(
        (magic, "a camera raw file", "develop it to JPEG, PNG or TIFF first")
        for magic in (b"IIRO", b"IIRS", b"MMOR", b"IIU\x00", b"\x00MRM", b"FOVb")
    ),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", "extract its frames first"),
    (b"\x00\x00\x01\xba", "a video (MPEG)", "extract its frames first"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)", "extract its frames first"),
    (b"FLV\x01", "a video (Flash)", "extract its frames first"),
    (b"OggS", "an Ogg stream", "extract its frames first"),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (Windows Media)", "extract its frames first"),
    (b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (b"PK\x05\x06", "an empty ZIP archive", _UNPACK),
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "a NumPy array", "save it as PNG first"),
    (b"PAR1", "a Parquet file", "name it .parquet to have its images read"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its images as PNG first"),
    (b"SQLite format 3\x00", "an SQLite database", "save its images as files first"),
    (b"\x00\x05\x16\x07", "macOS metadata (AppleDouble)", "leave out the ._ files"),
    (b"\x7fELF", "a program", "leave it out"),
    (b"\xd0\xcf\x11\xe0", "a Microsoft Office document", "extract its images first"),
)
_MAGICS_AT: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, description, advice
    (128, b"DICM", "a DICOM image", _CONVERT),
    (257, b"ustar", "a tar archive", "name it .tar to have its images read"),
    (8, b"AVI ", "a video (AVI)", "extract its frames first"),
    (8, b"WAVE", "a sound (WAVE)", "leave it out"),
)
_RAW_BRANDS, _MOVIE_BRANDS = {b"crx "}, {b"qt  "}
# Pattern of the beginning in lower case, description, advice.
_TEXTS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"version https://git-lfs\.github\.com/"),
        "a Git LFS pointer, not the file that it stands for",
        "run `git lfs pull` where it comes from",
    ),
    (
        re.compile(r"(?:<\?xml.*?)?(?:<!--.*?-->\s*)*(?:<!doctype svg|<svg|<\w+:svg)", re.DOTALL),
        "an SVG drawing",
        "render it to PNG first",
    ),
    (
        re.compile(r"(?:<\?xml.*?)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)", re.DOTALL),
        "an HTML page",
        f"its address may have moved or asked for a login; {_AGAIN}",
    ),
    (
        re.compile(r"<\?xml|<[a-z][\w:.-]*[\s>]"),
        "an XML document",
        f"if a server's error, {_AGAIN}",
    ),
    (re.compile(r"data:image/"), "a data URI in text", "decode its base64 first"),
    (re.compile(r"[\[{]\s*(?:[\"\[{}\]]|-?\d)"), "JSON", f"if a server's error, {_AGAIN}"),
)
_TEXT_BYTES, _QUOTED_CHARACTERS = 512, 60
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def describe_foreign(content: bytes) -> str:
    """Return one line that says what kind of file `content` is, if not an image, and what to do.

    An unknown kind is described by its first eight bytes. `content` is not empty.
    """
    if not content.strip(b"\x00"):
        return f"all of its {len(content)} bytes are zero: {_AGAIN}"
    kind = _media(content) or _by_magic(content) or _text(content[:_TEXT_BYTES])
    if kind:
        description, advice = kind
        return f"it is {description}: {advice}"
    return f"begins with {content[:8].hex(' ')}, which is none of {SUPPORTED}"


def _by_magic(content: bytes) -> tuple[str, str] | None:
    for magic, description, advice in _MAGICS:
        if content.startswith(magic):
            return description, advice
    for offset, magic, description, advice in _MAGICS_AT:
        if content[offset : offset + len(magic)] == magic:
            return description, advice
    return None


def _media(content: bytes) -> tuple[str, str] | None:
    """Describe an ISO media file without a still image; None for other files."""
    if content[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and content[0] < 2:
        return "a video (QuickTime)", "extract its frames first"
    if content[4:8] != b"ftyp":
        return None
    if set(brands(content)) & _RAW_BRANDS:
        return "a camera raw file (CR3)", "develop it to JPEG, PNG or TIFF first"
    kind = "QuickTime" if set(brands(content)) & _MOVIE_BRANDS else "MP4"
    return f"a video ({kind})", "extract its frames first"


def _text(start: bytes) -> tuple[str, str] | None:
    """Describe a text file; None for other files."""
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    for spare in range(4):  # the last character may be incomplete
        try:
            text = start[: len(start) - spare].decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        return None
    text = text.lstrip()
    if not text or not all(char.isprintable() or char.isspace() for char in text):
        return None
    lowered = text.lower()
    for pattern, description, advice in _TEXTS:
        if pattern.match(lowered):
            quote = _quote(text) if description in ("an XML document", "JSON") else ""
            return f"{description}{quote}", advice
    return f"text{_quote(text)}", _AGAIN


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return f' ("{line[:_QUOTED_CHARACTERS]}{"…" if len(line) > _QUOTED_CHARACTERS else ""}")'
