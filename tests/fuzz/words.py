"""Names and texts as they are found in the wild: any script, any bytes, any length."""

from __future__ import annotations

import os
from random import Random

_PIECES = (
    *(
        "a",
        "0001",
        "IMG_1",
        "x.y",
        " ",
        ".",
        "..",
        "-",
        "--help",
        "~",
        "~2",
        "#0",
        "%20",
        "%s",
        "{}",
    ),
    *(
        "ä",
        "é",
        "e\u0301",
        "\u0130",
        "ß",
        "日本",
        "한",
        "\u202e",
        "\u200d",
        "\ufeff",
        "😀",
        "\U0010ffff",
    ),
    *(
        "\t",
        "\n",
        "\r",
        "\x1b[31m",
        "\x07",
        "\x7f",
        "\u2028",
        "\\",
        "'",
        '"',
        "`",
        "$(x)",
        ";",
        "|",
    ),
    *("*", "?", "[a]", ":", "<", ">", "&", "+", "=", "@", "CON", "NUL", "con.txt", "%00", "null"),
)
_BYTES = (b"\xff", b"\xfe\xff", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88")
_PATHS = (
    "../",
    "../../",
    "/",
    "//",
    "./",
    "a/../../",
    "a/",
    "C:\\",
    "\\\\host\\",
    "/etc/",
    "/tmp/",
)


def text(draw: Random, *, most: int = 6) -> str:
    """Any text, in Unicode."""
    return "".join(draw.choice(_PIECES) for _ in range(draw.randint(1, most)))


def name(draw: Random) -> bytes:
    """A file's name as a disk takes it: no slash, no zero, at most 255 bytes."""
    found = text(draw).encode()
    if draw.random() < 0.4:
        found += draw.choice(_BYTES)
    if draw.random() < 0.1:
        found *= 80
    found = found.replace(b"/", b"_")[:200]
    return b"_" + found if found in (b".", b"..") else found


def path(draw: Random) -> bytes:
    """A path as an archive may hold it: of any depth, pointing anywhere, of any length."""
    head = "".join(draw.choice(_PATHS) for _ in range(draw.randint(0, 3)))
    found = head.encode() + name(draw)
    return found * draw.choice((30, 400)) if draw.random() < 0.05 else found


def as_text(content: bytes) -> str:
    """Bytes of a name as Python shows them."""
    return os.fsdecode(content)
