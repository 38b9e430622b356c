"""Which file names are images, and which are shards."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["folder", "list", "tar", "zip", "parquet"]

# Formats that no decoder here reads belong too: they become `unsupported_format` rejects.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd"),
    *(".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".exr", ".hdr", ".dng", ".cr2", ".nef"),
    *(".arw", ".raw"),
)
# Whose files are no images, whatever they begin with; a file of any other extension may be one.
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
    """Whether the path `name` ends in the extension of an image, in any case."""
    return _suffix(name) in _IMAGE_SUFFIXES


def may_be_image(name: str) -> bool:
    """Whether the first bytes have to tell what `name` is: it ends in no known extension."""
    suffix = _suffix(name)
    return suffix not in _IMAGE_SUFFIXES and suffix not in _OTHER_SUFFIXES and not shard_kind(name)


def _suffix(name: str) -> str:
    """As of `PurePosixPath`, in lower case, for each of millions of names."""
    last = name[name.rfind("/") + 1 :]
    dot = last.rfind(".")
    return last[dot:].lower() if 0 < dot < len(last) - 1 else ""


def shard_kind(name: str) -> Kind | None:
    """What kind of shard file `name` is by its extension; None if it is none."""
    lowered = name.lower()
    if not lowered.endswith(_ANY_SHARD):
        return None
    return next((kind for end, kind in _SHARD_SUFFIXES.items() if lowered.endswith(end)), None)


def shard_stem(name: str) -> str:
    """`name` without its shard extension."""
    ends = [end for end in _SHARD_SUFFIXES if name.lower().endswith(end)]
    return name[: -len(max(ends, key=len))] if ends else name


def is_hidden(name: str) -> bool:
    """Whether any part of the path is hidden or is what macOS adds to archives.

    Such files (`.DS_Store`, `._0007.jpg`, `__MACOSX/...`) carry metadata, not images.
    """
    if name[:1] != "." and "/." not in name and "__MACOSX" not in name:
        return False
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_list(name: str) -> bool:
    """Whether `name` ends as a text file of URIs does, one a line."""
    return name.lower().endswith(_LIST_SUFFIXES)


def plain_name(uri: str) -> str:
    """`uri` without the query and the fragment behind the name of a file on the web."""
    return re.split(r"[?#]", uri, maxsplit=1)[0] if uri.startswith(_WEB) else uri


def readable_name(name: str) -> str:
    """`name` as valid Unicode: bytes that are not UTF-8 are written as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
