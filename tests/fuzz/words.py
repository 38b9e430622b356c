"""Names and texts as in real data: any script, any bytes, any length."""

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
    """Return an arbitrary Unicode text."""
    return "".join(draw.choice(_PIECES) for _ in range(draw.randint(1, most)))


def name(draw: Random) -> bytes:
    """Return a file name that a disk accepts: no slash, no zero byte, at most 255 bytes."""
    content = text(draw).encode()
    if draw.random() < 0.4:
        content += draw.choice(_BYTES)
    if draw.random() < 0.1:
        content *= 80
    content = content.replace(b"/", b"_")[:200]
    return b"_" + content if content in (b".", b"..") else content


def path(draw: Random) -> bytes:
    """Return a path as an archive may hold it: any depth, any target, any length."""
    head = "".join(draw.choice(_PATHS) for _ in range(draw.randint(0, 3)))
    content = head.encode() + name(draw)
    return content * draw.choice((30, 400)) if draw.random() < 0.05 else content


def as_text(content: bytes) -> str:
    """Return the bytes of a name as Python decodes them."""
    return os.fsdecode(content)
