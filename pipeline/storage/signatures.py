"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

# A name says nothing: half of the `.jpg` files of a crawl are PNG or WebP.
_SIGNATURES = (
    ("JPEG", b"\xff\xd8"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("BMP", b"BM"),
)


def sniff(content: bytes) -> str | None:
    """Pillow's name of the format that `content` begins like, or None if it is not read here."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    for name, signature in _SIGNATURES:
        if content.startswith(signature):
            return name
    return None
