"""Why an image or a face gives no latent."""

from __future__ import annotations

from enum import StrEnum

from pipeline.errors import PipelineError


class RejectReason(StrEnum):
    """The fixed list of reasons; the value is what stands in the table."""

    UNREADABLE = "unreadable"  # a dead link, or a file or folder that this user may not read
    UNDECODABLE = "undecodable"  # the bytes are of a known format but cannot be decoded
    TRUNCATED = "truncated"  # the file ends before the image does
    NO_BYTES = "no_bytes"  # a row of the input holds no image, and no path of one that is opened
    UNSUPPORTED_FORMAT = "unsupported_format"  # not one of the formats that are read
    TOO_LARGE = "too_large"  # more pixels than the limit, by its header
    TOO_SMALL = "too_small"  # a side shorter than the smallest that is accepted
    KEY_TOO_LONG = "key_too_long"  # the key in its shard is longer than a table keeps
    NO_FACE = "no_face"  # the detector found none, at any scale that was tried
    FACE_TOO_SMALL = (
        "face_too_small"  # the face is smaller than the limit; of a sample, the largest
    )
    NOT_FINITE = "not_finite"  # a NaN or an infinity in the pixels, the landmarks or the code
    NO_START = "no_start"  # a face and the code that it was to start from do not come together
    NO_TARGET = "no_target"  # the image has no counterpart under --target, or one of no use
    TIMED_OUT = "timed_out"  # one image took longer than the limit and its process was stopped
    CRASHED = "crashed"  # the image killed its process, used up its memory, or met a bug in it


class Rejection(PipelineError):  # noqa: N818 - an outcome of one image, named by the table's word
    """One image or face that is rejected: `reason`, and `detail` in a line for a person."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejection], tuple[RejectReason, str]]:
        """Rebuilt from its two parts; an exception's default would hand over the joined text."""
        return type(self), (self.reason, self.detail)
