"""What alignment can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.choices import (
    CHECK_BELOW,
    MOST_SEARCH_PIXELS,
    SEARCH_PIXELS,
    Faces,
    Fit,
    Icc,
    Turns,
)
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
    turns: Turns = "auto"  # "auto" looks for faces in turned photos too
    search_pixels: int = SEARCH_PIXELS  # of the largest copy that is searched; 0: no larger ones
    check_below: float = CHECK_BELOW  # faces of a lower score are looked for again in their crop
    row_timeout_s: float = 60.0  # an image that takes longer is rejected as `timed_out`
    memory_limit_mib: int = 6144  # address space of the child process; 0 is no limit

    def __post_init__(self) -> None:
        problem = next((text for wrong, text in self._problems() if wrong), None)
        if problem:
            raise ConfigError(problem)

    def _problems(self) -> Iterator[tuple[bool, str]]:
        """Whether it is wrong, and what to tell, of each setting."""
        height, width = self.output_size
        yield min(height, width) < 1, f"output_size {self.output_size} must be at least (1, 1)"
        yield (
            height != width and not self.prealigned,
            f"output_size {self.output_size}: aligned faces are square; "
            "a model with other input takes prealigned images",
        )
        choices = (("faces", Faces), ("fit", Fit), ("icc", Icc), ("turns", Turns))
        for name, kind in choices:
            words, given = get_args(kind), getattr(self, name)
            yield given not in words, f"{name} must be one of {', '.join(words)}, got '{given}'"
        yield (
            self.fit != "stretch" and not self.prealigned,
            f"fit '{self.fit}' is for prealigned images: faces are cut square",
        )
        yield self.min_face_px <= 0, f"min_face_px {self.min_face_px} must be above 0"
        yield (
            self.detector_side < 80,
            f"detector_side {self.detector_side} is under the detector's window",
        )
        yield (
            not 0 <= self.search_pixels <= MOST_SEARCH_PIXELS,
            f"search_pixels {self.search_pixels} must lie between 0 and {MOST_SEARCH_PIXELS}",
        )
        yield not self.check_below >= 0, f"check_below {self.check_below} must be 0 or above"
        yield self.row_timeout_s <= 0, f"row_timeout_s {self.row_timeout_s} must be above 0"

    def result_settings(self) -> dict[str, Any]:
        """What a table's fingerprint has to tell of them."""
        guards = {"row_timeout_s", "memory_limit_mib"}
        return {name: value for name, value in self.used().items() if name not in guards}

    def used(self) -> dict[str, Any]:
        """All settings but those of a search that is not made, where images are crops."""
        unused = {"turns", "search_pixels", "check_below"} if self.prealigned else set()
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def tells_turns(self) -> bool:
        """Whether faces have a `turn_deg`."""
        return self.turns == "auto" and not self.prealigned

    @property
    def searches_as_before(self) -> bool:
        """Whether this is the search of tables that were made before there was another."""
        return self.turns == "none" and not self.search_pixels and not self.check_below

    @property
    def limits(self) -> ImageLimits:
        """What an image may be."""
        return ImageLimits(self.max_pixels, self.min_side, self.icc)
