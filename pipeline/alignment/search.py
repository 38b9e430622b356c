"""The search for the faces of one image: sizes and turns in order, and what decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from pipeline.alignment.check import CLEAR, PLAUSIBLE
from pipeline.alignment.detection import Detection, all_faces_scale, find_faces
from pipeline.alignment.photo import Photo
from pipeline.alignment.rotation import TURNS
from pipeline.alignment.search_order import Try, plan_tries
from pipeline.alignment.settings import FFHQ_SIZE, AlignmentSettings
from pipeline.choices import MOST_SEARCH_PIXELS
from pipeline.images import Rejection, RejectReason

# A view of the image and its faces, the largest first.
Found: TypeAlias = tuple[Photo, list[Detection]]


@dataclass
class Search:
    """The search of one image; `find` is its answer."""

    image: Image.Image
    settings: AlignmentSettings
    _tried: list[Try] = field(default_factory=list)
    _refused: float | None = None  # the best score of what was no face in its own crop

    def find(self) -> Found:
        """The view of the image that shows its faces upright, and these, never none.

        The first search that finds one ends it. Of `faces` "largest" the first of them is wanted.
        Raises `Rejection` (`no_face`), which says what was searched.
        """
        upright = self._view(0)
        for each in self._plan():
            found = self._turned(each) if each.turned else self._upright(upright, each)
            if found:
                return found
        raise Rejection(RejectReason.NO_FACE, self._told())

    def _plan(self) -> list[Try]:
        tries = plan_tries(
            self.image.size,
            detector_side=self.settings.detector_side,
            search_pixels=self.settings.search_pixels,
            turns=self.settings.turns == "auto",
        )
        if self.settings.faces == "largest":
            return tries
        # A first try that finds a large face says nothing of the small ones.
        first, size = self._all_faces(), self.image.size
        return [first, *(t for t in tries if t.turned or t.pixels(size) > first.pixels(size))]

    def _all_faces(self) -> Try:
        """The search that shows every face of the least side."""
        side = 2 * self.settings.detector_side
        return Try(all_faces_scale(self.image.size, self.settings.min_face_px, side), 0)

    def _view(self, turn_deg: int) -> Photo:
        return Photo(self.image, turn_deg, max(FFHQ_SIZE, *self.settings.output_size))

    def _detected(self, photo: Photo, each: Try) -> list[Detection]:
        least = self.settings.min_score
        return find_faces(photo.image, each.scale, each.upsample, min_score=least)

    def _upright(self, photo: Photo, each: Try) -> Found | None:
        """What is found upright; where that is weak, what is found of the same size turned."""
        self._tried.append(each)
        faces = self._likely(photo, self._detected(photo, each))
        if not faces:
            return None
        if self.settings.turns == "auto" and not self._is_clear(photo, faces):
            for turned in self._beside(each):
                found = self._turned(turned)
                if found:
                    return found
        return photo, faces

    def _beside(self, each: Try) -> list[Try]:
        """The turned searches that decide where an upright one found only weak faces."""
        if self.settings.faces == "largest":
            return [Try(each.scale, each.upsample, turned=True)]
        side = min(self.settings.detector_side / max(self.image.size), 1)
        return [Try(side, 0, turned=True), Try(side, 1, turned=True)]

    def _turned(self, each: Try) -> Found | None:
        """What is found in the turn whose best face is the clearest in its own crop."""
        if each in self._tried:
            return None
        self._tried.append(each)
        best: tuple[float, Found] = (0.0, (self._view(0), []))
        for turn_deg in TURNS:
            photo = self._view(turn_deg)
            faces = self._detected(photo, each)
            large = [face for face in faces if not self._is_small(face)]
            if large:
                score = self._score(photo, max(large, key=lambda face: face.score))
                best = max(best, (score, (photo, faces)), key=lambda one: one[0])
        score, (photo, faces) = best
        if score < CLEAR:
            return None
        if self.settings.faces == "all":
            faces = self._likely(photo, self._detected(photo, self._all_faces())) or faces
        return photo, self._likely(photo, faces) or faces

    def _likely(self, photo: Photo, faces: list[Detection]) -> list[Detection]:
        """`faces` without those that are none; of "largest" without those before the first one."""
        if self.settings.faces == "all":
            return [face for face in faces if self._is_likely(photo, face)]
        first = (i for i, face in enumerate(faces) if self._is_likely(photo, face))
        return faces[next(first, len(faces)) :]

    def _is_likely(self, photo: Photo, face: Detection) -> bool:
        # One under the limit becomes a reject in any case, whatever it is.
        small, sure = self._is_small(face), self._is_sure(face)
        if small or sure or self._score(photo, face) >= PLAUSIBLE:
            return True
        self._refused = max(face.score, self._refused or 0.0)
        return False

    def _is_clear(self, photo: Photo, faces: list[Detection]) -> bool:
        """Whether a face that is wanted leaves no doubt that the photo is upright."""
        wanted = faces[:1] if self.settings.faces == "largest" else faces
        return any(
            self._is_sure(face) or self._score(photo, face) >= CLEAR
            for face in wanted
            if not self._is_small(face)
        )

    def _is_small(self, face: Detection) -> bool:
        return face.side < self.settings.min_face_px

    def _is_sure(self, face: Detection) -> bool:
        return face.score >= self.settings.check_below

    def _score(self, photo: Photo, face: Detection) -> float:
        """The detector's score of `face` in its own crop; 0 where it cannot be cut."""
        try:
            return photo.score_in_crop(face)
        except Rejection:
            return 0.0

    def _told(self) -> str:
        """What was searched, and which flags search more."""
        size, asked = self.image.size, self.settings
        text = f"no face found in {size[0]}×{size[1]} pixels"
        upright = [each for each in self._tried if not each.turned]
        turned = [each for each in self._tried if each.turned]
        if asked.searches_as_before:
            return f"{text} ({self._told_as_before()})"
        searched = [f"{_largest(upright, size)} pixels upright"]
        if turned:
            searched.append(f"{_largest(turned, size)} turned by 90, 180 and 270 degrees")
        text += f" (searched at up to {', and at up to '.join(searched)})"
        most = max(each.pixels(size) for each in upright)
        if most < Try(1, 1).pixels(size) and asked.search_pixels < MOST_SEARCH_PIXELS:
            text += f"; --search-pixels above {asked.search_pixels} searches larger copies"
        if self._refused is not None:
            text += (
                f"; what scored {self._refused:.2f} is no face in its own crop: --check-below 0 "
                "takes it for one"
            )
        return text

    def _told_as_before(self) -> str:
        """As versions without turns and larger searches told it, for the tables they made."""
        side, faces = self.settings.detector_side, self.settings.faces
        if faces == "all":
            return f"faces of {self.settings.min_face_px:g} px and more were looked for"
        tries = ((side, 0), (side, 1), (2 * side, 1))
        return f"at most {', '.join(f'{px} px upsample {n}' for px, n in tries)} tried"


def _largest(tries: list[Try], size: tuple[int, int]) -> str:
    width, height = max((each.searched(size) for each in tries), key=lambda edges: edges[0])
    return f"{width}×{height}"
