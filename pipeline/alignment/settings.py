"""Settings of alignment, and their checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pipeline.choices import (
    CHECK_BELOW,
    COARSE_SIDE,
    EARLIER_SEARCH,
    MOST_SEARCH_PIXELS,
    SEARCH_PIXELS,
    Faces,
    Fit,
    Icc,
    Turns,
)
from pipeline.errors import ConfigError
from pipeline.images import ImageLimits

FFHQ_SIZE = 256  # pixels; side of the crop in the reference scripts and in encoder training


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of an `Aligner`; raises `ConfigError` for an invalid value.

    The last two protect the process and do not change the rows of aligned images. All others can
    change them: `result_settings` returns those.
    """

    faces: Faces = "largest"
    prealigned: bool = False  # images are crops already and only resized: cars, churches, ...
    fit: Fit = "stretch"  # how prealigned images of other proportions are resized
    min_face_px: float = 32.0  # smallest side of a face's box in the original image
    output_size: tuple[int, int] = (FFHQ_SIZE, FFHQ_SIZE)  # (height, width) of the crops
    max_pixels: int = ImageLimits.max_pixels
    min_side: int = ImageLimits.min_side
    icc: Icc = ImageLimits.icc  # "apply" or "ignore" embedded colour profiles
    coarse_side: int = COARSE_SIDE  # of a copy in which a clear face ends the search; 0: none
    detector_side: int = 448  # longest side of the next copy that is searched; later twice that
    min_score: float = 0.0  # of dlib's HOG detector; 0 is its own threshold
    turns: Turns = "auto"  # "auto" also searches turned copies
    search_pixels: int = SEARCH_PIXELS  # largest copy that is searched; 0: only the first copies
    check_below: float = CHECK_BELOW  # faces of a lower score are searched again in their crop
    row_timeout_s: float = 60.0  # an image that takes longer is rejected as `timed_out`
    memory_limit_mib: int = 6144  # address space of the child process; 0: unlimited

    def __post_init__(self) -> None:
        problem = next((text for is_wrong, text in self._checks() if is_wrong), None)
        if problem:
            raise ConfigError(problem)

    def _checks(self) -> Iterator[tuple[bool, str]]:
        """Yield, for each setting, whether it is invalid and the error message."""
        height, width = self.output_size
        yield min(height, width) < 1, f"output_size must be at least (1, 1), got {self.output_size}"
        yield (
            height != width and not self.prealigned,
            f"output_size must be square for aligned faces, got {self.output_size}: "
            "a model with another input shape needs prealigned images",
        )
        choices = (("faces", Faces), ("fit", Fit), ("icc", Icc), ("turns", Turns))
        for name, kind in choices:
            allowed, value = get_args(kind), getattr(self, name)
            yield value not in allowed, f"{name} must be one of {', '.join(allowed)}, got '{value}'"
        yield (
            self.fit != "stretch" and not self.prealigned,
            f"fit '{self.fit}' needs prealigned images: aligned faces are always square",
        )
        yield self.min_face_px <= 0, f"min_face_px must be above 0, got {self.min_face_px}"
        yield (
            self.detector_side < 80,
            f"detector_side must be at least 80, the detector's window, got {self.detector_side}",
        )
        yield (
            self.coarse_side != 0 and not 80 <= self.coarse_side < self.detector_side,
            f"coarse_side must be 0, or from 80 to {self.detector_side - 1}, "
            f"got {self.coarse_side}",
        )
        yield (
            not 0 <= self.search_pixels <= MOST_SEARCH_PIXELS,
            f"search_pixels must be from 0 to {MOST_SEARCH_PIXELS}, got {self.search_pixels}",
        )
        yield not self.check_below >= 0, f"check_below must be 0 or more, got {self.check_below}"
        yield self.row_timeout_s <= 0, f"row_timeout_s must be above 0, got {self.row_timeout_s}"

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that can change a row: those in a table's fingerprint."""
        guards = {"row_timeout_s", "memory_limit_mib"}
        return {name: value for name, value in self.used().items() if name not in guards}

    def used(self) -> dict[str, Any]:
        """Return all settings, without those of the face search that have no effect."""
        return {name: value for name, value in asdict(self).items() if name not in self.unused}

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of settings of the face search without effect: on crops, or on all faces."""
        if self.prealigned:
            return tuple(EARLIER_SEARCH)
        return () if self.faces == "largest" else ("coarse_side",)

    @property
    def records_turns(self) -> bool:
        """True if rows have a `turn_deg`: turned copies are searched."""
        return self.turns == "auto" and not self.prealigned

    @property
    def is_basic_search(self) -> bool:
        """True if turns, larger copies and the check in the crop are all off.

        The `no_face` details of such a search are those of tables without these settings.
        """
        return self.turns == "none" and not self.search_pixels and not self.check_below

    @property
    def limits(self) -> ImageLimits:
        """Limits that `decode` applies to images."""
        return ImageLimits(self.max_pixels, self.min_side, self.icc)
