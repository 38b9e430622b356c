"""An aligner with a memory error in native code, as decoders have had, that one image sets off.

36,000 damaged images found no such file for the libraries of these versions, so the error is put
in: the image is a sound JPEG, and what kills the process is a native write of its own pixels.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np

from pipeline.alignment import Aligner, Alignment, AlignmentSettings
from pipeline.images import decode
from tests.images.encoded import encode, picture

_COMMENT = b"sets the error off"


def sound() -> bytes:
    """A JPEG that nothing is wrong with."""
    return encode(picture(), "JPEG")


def poison() -> bytes:
    """The same picture; a comment in its header steers the decoder into the error."""
    return encode(picture(), "JPEG", comment=_COMMENT)


class VulnerableAligner:
    """Aligns like `Aligner`, but writes the pixels of a poisoned image through a null pointer."""

    def __init__(self, settings: AlignmentSettings) -> None:
        self._aligner = Aligner(replace(settings, prealigned=True))

    def align(self, content: bytes) -> Alignment:
        """The faces of one image, or no return."""
        pixels = np.asarray(decode(content))
        if _COMMENT in content[:1024]:
            ctypes.memmove(0, pixels.ctypes.data, pixels.nbytes)
        return self._aligner.align(content)
