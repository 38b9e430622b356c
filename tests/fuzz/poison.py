"""Aligner with a memory error in native code that one image triggers.

36,000 damaged images found no such file for the installed versions of the decoders, so the error is
planted: the image is a valid JPEG, and a native write of its own pixels crashes the process.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np

from pipeline.alignment import Aligner, Alignment, AlignmentSettings
from pipeline.images import decode
from tests.images.encoded import encode, picture

_COMMENT = b"triggers the error"


def sound() -> bytes:
    """Return a valid JPEG."""
    return encode(picture(), "JPEG")


def poison() -> bytes:
    """Return the same picture with a comment that triggers the error."""
    return encode(picture(), "JPEG", comment=_COMMENT)


class VulnerableAligner:
    """Aligner that writes the pixels of a poisoned image through a null pointer."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self._aligner = Aligner(replace(settings, prealigned=True))

    def align(self, content: bytes) -> Alignment:
        """Return the faces of one image, or crash."""
        pixels = np.asarray(decode(content))
        if _COMMENT in content[:1024]:
            ctypes.memmove(0, pixels.ctypes.data, pixels.nbytes)
        return self._aligner.align(content)
