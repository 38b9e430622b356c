"""Bytes to pixels: safe decoding, orientation, colour profiles, and the reasons for a refusal."""

from pipeline.images.decode import ICC_IGNORED, ImageLimits, decode
from pipeline.images.rejects import Rejection, RejectReason

__all__ = ["ICC_IGNORED", "ImageLimits", "RejectReason", "Rejection", "decode"]
