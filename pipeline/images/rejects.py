"""Reasons why an image or a face is rejected."""

from __future__ import annotations

from enum import StrEnum

from pipeline.errors import PipelineError


class RejectReason(StrEnum):
    """Fixed list of reject reasons; the values are stored in the table."""

    UNREADABLE = "unreadable"  # a dead link, or a file or folder without read permission
    UNDECODABLE = "undecodable"  # a supported format, but it cannot be decoded
    TRUNCATED = "truncated"  # the file ends before the image does
    NO_BYTES = "no_bytes"  # an input row without an image and without a path of one
    UNSUPPORTED_FORMAT = "unsupported_format"  # not a supported format
    TOO_LARGE = "too_large"  # more pixels than the limit, by its header
    TOO_SMALL = "too_small"  # a side shorter than the limit
    KEY_TOO_LONG = "key_too_long"  # the key in its shard exceeds the table's limit
    NO_FACE = "no_face"  # the detector found none at any scale
    FACE_TOO_SMALL = (
        "face_too_small"  # the face is smaller than the limit; for a sample, its largest
    )
    NOT_FINITE = "not_finite"  # a NaN or an infinity in the pixels, the landmarks or the code
    NO_START = "no_start"  # a face without the initial code that it needs
    NO_TARGET = "no_target"  # no counterpart under --target, or one that cannot be used
    TIMED_OUT = "timed_out"  # the image took longer than the limit
    CRASHED = "crashed"  # the image killed its process, exceeded its memory, or hit a bug
    FORGOTTEN = "forgotten"  # erased on request: `pipeline/table/forgetting/erase.py`


class Rejection(PipelineError):  # noqa: N818 - named like the table's rejects
    """Raised for an image or face that is rejected: `reason`, and `detail` in one line."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejection], tuple[RejectReason, str]]:
        """Pickle `reason` and `detail`; the default would pass the joined text as `reason`."""
        return type(self), (self.reason, self.detail)
