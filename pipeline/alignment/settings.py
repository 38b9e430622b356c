"""What alignment can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.choices import Faces, Fit, Icc
from pipeline.errors import ConfigError
from pipeline.images import ImageLimits

FFHQ_SIZE = 256  # pixels; the crop that the reference scripts make and the encoders saw


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of an `Aligner`; raises `ConfigError` where one cannot be met.

    The last two guard the process and change no row of an image that aligns; all others do, and are
    its `result_settings`.
    """

    faces: Faces = "largest"
    prealigned: bool = False  # images are crops already: only resized, for cars, churches, ...
    fit: Fit = "stretch"  # how prealigned images of other proportions are resized
    min_face_px: float = 32.0  # smallest side of a face's box in the original image
    output_size: tuple[int, int] = (FFHQ_SIZE, FFHQ_SIZE)  # (height, width) of the crops
    max_pixels: int = ImageLimits.max_pixels
    min_side: int = ImageLimits.min_side
    icc: Icc = ImageLimits.icc  # embedded colour profiles: applied, or ignored
    detector_side: int = 448  # longest side of the copy that is searched first; twice that last
    min_score: float = 0.0  # dlib's margin; 0 is the detector's own threshold
    row_timeout_s: float = 60.0  # an image that takes longer is rejected as `timed_out`
    memory_limit_mib: int = 6144  # address space of the child process; 0 is no limit

    def __post_init__(self) -> None:
        height, width = self.output_size
        if min(height, width) < 1:
            raise ConfigError(f"output_size {self.output_size} must be at least (1, 1)")
        if height != width and not self.prealigned:
            raise ConfigError(
                f"output_size {self.output_size}: aligned faces are square; "
                "a model with other input takes prealigned images"
            )
        if self.faces not in get_args(Faces):
            raise ConfigError(f"faces must be 'largest' or 'all', got '{self.faces}'")
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit must be one of {', '.join(get_args(Fit))}, got '{self.fit}'")
        if self.icc not in get_args(Icc):
            raise ConfigError(f"icc must be one of {', '.join(get_args(Icc))}, got '{self.icc}'")
        if self.fit != "stretch" and not self.prealigned:
            raise ConfigError(f"fit '{self.fit}' is for prealigned images: faces are cut square")
        if self.min_face_px <= 0:
            raise ConfigError(f"min_face_px {self.min_face_px} must be above 0")
        if self.detector_side < 80:
            raise ConfigError(f"detector_side {self.detector_side} is under the detector's window")
        if self.row_timeout_s <= 0:
            raise ConfigError(f"row_timeout_s {self.row_timeout_s} must be above 0")

    def result_settings(self) -> dict[str, Any]:
        """What a table's fingerprint has to tell of them."""
        guards = {"row_timeout_s", "memory_limit_mib"}
        return {name: value for name, value in asdict(self).items() if name not in guards}

    @property
    def limits(self) -> ImageLimits:
        """What an image may be."""
        return ImageLimits(self.max_pixels, self.min_side, self.icc)
