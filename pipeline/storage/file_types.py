"""Recognise file types by name and by first bytes: images, shards, and everything else."""

from __future__ import annotations

import re
import struct
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["folder", "list", "tar", "zip", "parquet"]

# Includes formats that no decoder here reads: these files become `unsupported_format` rejects.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd"),
    *(".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".exr", ".hdr", ".dng", ".cr2", ".nef"),
    *(".arw", ".raw"),
)
# Files with these extensions are never images. A file with any other extension may be one.
_OTHER_SUFFIXES = frozenset(
    (
        *(".json", ".jsonl", ".ndjson", ".geojson", ".txt", ".text", ".csv", ".tsv", ".xml"),
        *(".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".md", ".rst", ".tex", ".log"),
        *(".lst", ".list", ".html", ".htm", ".css", ".js", ".ts", ".cls", ".caption", ".srt"),
        *(".vtt", ".bib", ".xmp", ".aae", ".url", ".lnk", ".py", ".ipynb", ".sh", ".bat", ".c"),
        *(".h", ".cpp", ".java", ".lua", ".go", ".rs", ".npy", ".npz", ".pt", ".pth", ".ckpt"),
        *(".safetensors", ".onnx", ".pkl", ".pickle", ".mat", ".h5", ".hdf5", ".arrow", ".orc"),
        *(".feather", ".avro", ".db", ".sqlite", ".sqlite3", ".mdb", ".tfrecord", ".tfrecords"),
        *(".idx", ".zip", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".iso", ".mp4"),
        *(".m4v", ".webm", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".mp3", ".wav", ".flac"),
        *(".ogg", ".m4a", ".aac", ".pdf", ".ps", ".eps", ".doc", ".docx", ".ppt", ".pptx"),
        *(".xls", ".xlsx", ".odt", ".exe", ".dll", ".so", ".md5", ".sha1", ".sha256", ".sum"),
        *(".crc", ".asc", ".part", ".partial", ".crdownload", ".tmp", ".lock"),
    )
)
_LIST_SUFFIXES = (".txt", ".lst", ".list")
_WEB = ("http://", "https://")
_TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
_SHARD_SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys(_TAR_SUFFIXES, "tar"),
    ".zip": "zip",
    ".parquet": "parquet",
}
_ANY_SHARD = tuple(_SHARD_SUFFIXES)
_IMAGE_SUFFIXES = frozenset(IMAGE_SUFFIXES)


def is_image(name: str) -> bool:
    """Return whether the path `name` has an image extension, in upper or lower case."""
    return _suffix(name) in _IMAGE_SUFFIXES


def without_image_suffix(name: str) -> str:
    """Return the path `name` without an image extension, if it has one and more than that."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in _IMAGE_SUFFIXES else name


def may_be_image(name: str) -> bool:
    """Return whether `name` has no known extension, so that its first bytes must decide."""
    suffix = _suffix(name)
    return suffix not in _IMAGE_SUFFIXES and suffix not in _OTHER_SUFFIXES and not shard_kind(name)


def _suffix(name: str) -> str:
    """Return `PurePosixPath(name).suffix` in lower case, fast enough for millions of names."""
    last = name[name.rfind("/") + 1 :]
    dot = last.rfind(".")
    return last[dot:].lower() if 0 < dot < len(last) - 1 else ""


def stem_of(name: str) -> str:
    """Return the path `name` without the last extension of its last component."""
    return name[: -len(PurePosixPath(name).suffix) or None]


def shard_kind(name: str) -> Kind | None:
    """Return the kind of shard file that the extension of `name` says; None for other files."""
    lowered = name.lower()
    if not lowered.endswith(_ANY_SHARD):
        return None
    return next((kind for end, kind in _SHARD_SUFFIXES.items() if lowered.endswith(end)), None)


def shard_stem(name: str) -> str:
    """Return `name` without its shard extension."""
    ends = [end for end in _SHARD_SUFFIXES if name.lower().endswith(end)]
    return name[: -len(max(ends, key=len))] if ends else name


def is_hidden(name: str) -> bool:
    """Return whether any part of the path is hidden or is what macOS adds to archives.

    Such files (`.DS_Store`, `._0007.jpg`, `__MACOSX/...`) carry metadata, not images.
    """
    if name[:1] != "." and "/." not in name and "__MACOSX" not in name:
        return False
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_list(name: str) -> bool:
    """Return whether `name` has the extension of a text file that holds one URI per line."""
    return name.lower().endswith(_LIST_SUFFIXES)


def plain_name(uri: str) -> str:
    """Return `uri`, without query and fragment if it is a web address."""
    return re.split(r"[?#]", uri, maxsplit=1)[0] if uri.startswith(_WEB) else uri


def readable_name(name: str) -> str:
    """Return `name` as valid Unicode: bytes that are not UTF-8 are written as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# The extension is not reliable: half of the `.jpg` files of a crawl are PNG or WebP.
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
_HEIF_CONTAINERS = {b"mif1", b"msf1"}  # of any codec; the compatible brands name the codec
_MAX_BRANDS = 64
# "P6 640 480": a signature of two characters alone would also match texts.
_NETPBM = re.compile(
    rb"P[1-6Ff]\s+(?:#[^\r\n]*[\r\n]\s*)*\d|P7\s*\n(?:#|WIDTH|HEIGHT|DEPTH|MAXVAL|TUPL)"
)
_NETPBM_BYTES = 1024
_TGA_HEADER = struct.Struct("<BBBHHBHHHHBB")
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_TGA_MAPPED, _TGA_DEPTHS = (1, 9), {2: (16, 24, 32), 3: (1, 8, 16), 10: (16, 24, 32), 11: (8, 16)}


def sniff(content: bytes) -> str | None:
    """Return Pillow's name of the format that `content` begins with; None for unknown formats.

    The first 1024 bytes suffice, except for a TGA with an unusual header, which is recognised by
    the footer at its end.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    for name, signature in _SIGNATURES:
        if content.startswith(signature):
            return name
    if content[4:8] == b"ftyp":
        return _codec_of(brands(content))
    if _NETPBM.match(content, 0, _NETPBM_BYTES):
        return "PPM"
    return "TGA" if _is_tga(content) else None


def brands(content: bytes) -> list[bytes]:
    """Return the brands of an ISO media file (HEIC, AVIF, MP4, ...), the major brand first."""
    length = min(struct.unpack(">I", content[:4])[0], 16 + 4 * _MAX_BRANDS)
    listed = [content[8:12], *(content[at : at + 4] for at in range(16, length, 4))]
    return [brand for brand in listed if len(brand) == 4]


def _codec_of(listed: list[bytes]) -> str | None:
    """Return the format of the first brand that names one; `mif1` and `msf1` name none."""
    for brand in listed:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIF_BRANDS:
            return "HEIF"
        if brand not in _HEIF_CONTAINERS and brand == listed[0]:
            return None  # a video, whatever the compatible brands are
    return "HEIF" if listed else None


def _is_tga(content: bytes) -> bool:
    """Return whether `content` is a TGA image.

    TGA has no signature: every field of the header must have a value that the format allows, or
    the file must end in the footer.
    """
    if len(content) < _TGA_HEADER.size:
        return False
    _, has_map, kind, first, entries, entry_bits, _, _, width, height, depth, flags = (
        _TGA_HEADER.unpack_from(content)
    )
    if kind in _TGA_MAPPED:
        mapped = has_map == 1 and depth == 8 and 0 < first + entries <= 256
        fields = mapped and entry_bits in (15, 16, 24, 32)
    else:
        # Most writers set the fields of the missing colour map to zero; the others write a footer.
        unmapped = has_map == 0 and (first, entries, entry_bits) == (0, 0, 0)
        valid_depth = depth in _TGA_DEPTHS.get(kind, ())
        fields = valid_depth and (unmapped or (has_map <= 1 and content.endswith(_TGA_FOOTER)))
    return bool(fields and width and height and not flags & 0xC0 and flags & 0x0F in (0, 1, 8))
