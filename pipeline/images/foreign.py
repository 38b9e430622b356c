"""What a file is that is no image that is read here: named in its reject, with what to do."""

from __future__ import annotations

import re

from pipeline.images.formats import SUPPORTED
from pipeline.storage.file_types import brands

_CONVERT = "convert it to PNG or JPEG first"
_UNPACK = "unpack it, or pack the images as .tar"
_AGAIN = "fetch the image again"
_MAGICS: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what that is, what to do
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
_PLACED: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, what that is, what to do
    (128, b"DICM", "a DICOM image", _CONVERT),
    (257, b"ustar", "a tar archive", "name it .tar to have its images read"),
    (8, b"AVI ", "a video (AVI)", "extract its frames first"),
    (8, b"WAVE", "a sound (WAVE)", "leave it out"),
)
_RAW_BRANDS, _MOVIE_BRANDS = {b"crx "}, {b"qt  "}
_TEXTS: tuple[tuple[re.Pattern[str], str, str], ...] = (  # of the beginning, in lower case
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
_SEARCHED, _SHOWN = 512, 60  # bytes, characters
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def describe_foreign(content: bytes) -> str:
    """A line that says what `content`, which is not empty, is instead of an image, and what to do.

    What is not recognised is shown by its first eight bytes.
    """
    if not content.strip(b"\x00"):
        return f"all of its {len(content)} bytes are zero: {_AGAIN}"
    known = _media(content) or _by_magic(content) or _text(content[:_SEARCHED])
    if known:
        what, advice = known
        return f"it is {what}: {advice}"
    return f"begins with {content[:8].hex(' ')}, which is none of {SUPPORTED}"


def _by_magic(content: bytes) -> tuple[str, str] | None:
    for magic, what, advice in _MAGICS:
        if content.startswith(magic):
            return what, advice
    for offset, magic, what, advice in _PLACED:
        if content[offset : offset + len(magic)] == magic:
            return what, advice
    return None


def _media(content: bytes) -> tuple[str, str] | None:
    """What an ISO media file holds; those with still images have been told from it before."""
    if content[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and content[0] < 2:
        return "a video (QuickTime)", "extract its frames first"
    if content[4:8] != b"ftyp":
        return None
    if set(brands(content)) & _RAW_BRANDS:
        return "a camera raw file (CR3)", "develop it to JPEG, PNG or TIFF first"
    kind = "QuickTime" if set(brands(content)) & _MOVIE_BRANDS else "MP4"
    return f"a video ({kind})", "extract its frames first"


def _text(start: bytes) -> tuple[str, str] | None:
    """What text this is; None where it is none."""
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    for spare in range(4):  # the last character may be cut
        try:
            text = start[: len(start) - spare].decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        return None
    text = text.lstrip()
    if not text or not all(one.isprintable() or one.isspace() for one in text):
        return None
    lowered = text.lower()
    for pattern, what, advice in _TEXTS:
        if pattern.match(lowered):
            return f"{what}{_shown(text) if what in ('an XML document', 'JSON') else ''}", advice
    return f"text{_shown(text)}", _AGAIN


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return f' ("{line[:_SHOWN]}{"…" if len(line) > _SHOWN else ""}")'
