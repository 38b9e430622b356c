"""Bytes to pixels: safe decoding, EXIF orientation, colour, and the reasons for a refusal."""

from pipeline.images.decode import ImageLimits, decode
from pipeline.images.rejects import Rejection, RejectReason

__all__ = ["ImageLimits", "RejectReason", "Rejection", "decode"]
