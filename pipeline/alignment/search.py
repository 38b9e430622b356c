"""Search one image for faces: which copies and turns, in which order, and which results count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from pipeline.alignment.detection import Detection, all_faces_scale, find_faces
from pipeline.alignment.photo import CLEAR, PLAUSIBLE, TURNS, Photo
from pipeline.alignment.settings import FFHQ_SIZE, AlignmentSettings
from pipeline.choices import MOST_SEARCH_PIXELS
from pipeline.images import Rejection, RejectReason

# A turned pass searches three copies. On copies of a quarter of the pixels they cost together
# about as much as the last upright pass.
_TURNED_SHARE = 0.25
# Times `check_below`: score from which the frontal filter's face needs no check in its crop. By
# default 0.81; its best in 1236 wrongly turned photos was 0.26.
_FRONTAL_SURE = 0.6


@dataclass(frozen=True)
class SearchPass:
    """Search of one copy: `scale`, doubled `upsample` times, upright or in all three turns."""

    scale: float
    upsample: int
    turned: bool = False

    @property
    def copies(self) -> int:
        return len(TURNS) if self.turned else 1

    def searched_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height of the searched copy of an image of `size`, before a turn."""
        width, height = (max(1, round(edge * self.scale)) << self.upsample for edge in size)
        return width, height

    def pixels(self, size: tuple[int, int]) -> int:
        """Return the number of pixels of the searched copy of an image of `size`."""
        width, height = self.searched_size(size)
        return width * height


def plan_passes(
    size: tuple[int, int],  # (width, height)
    *,
    detector_side: int,
    search_pixels: int,
    turns: bool,
) -> list[SearchPass]:
    """Return the passes over an image in order; the search ends with the first that finds a face.

    First come copies of at most `detector_side` pixels and twice that, also turned ones. Then
    follow larger ones of at most `search_pixels` pixels, cheapest first: the last are the image in
    its own size and doubled once, as the reference scripts search it.
    """
    longest, side = max(size), detector_side
    passes = [
        *(_fitting(longest, side, 0), _fitting(longest, side, 1)),
        *(_fitting(longest, side, 0, turned=True), _fitting(longest, 2 * side, 1)),
        _fitting(longest, side, 1, turned=True),
    ]
    if search_pixels:
        larger = list(_larger_passes(size, side, search_pixels))
        larger += [
            SearchPass(each.scale, each.upsample, turned=True)
            for each in (_fitting(longest, 2 * side, 1), *larger)
            if each.pixels(size) <= search_pixels * _TURNED_SHARE
        ]
        passes += sorted(larger, key=lambda each: each.pixels(size) * each.copies)
    return list(dict.fromkeys(each for each in passes if turns or not each.turned))


def _fitting(longest: int, side: int, upsample: int, *, turned: bool = False) -> SearchPass:
    # An image that is smaller than `side` is searched in its own size.
    return SearchPass(min(side / longest, 1), upsample, turned)


def _larger_passes(
    size: tuple[int, int], detector_side: int, max_pixels: int
) -> Iterator[SearchPass]:
    """Yield upright passes on larger copies than the first ones, of at most `max_pixels` each."""
    longest, side = max(size), 8 * detector_side
    passes = []
    while side * 1.5 <= longest:
        passes.append(SearchPass(side / longest, 0))
        side *= 2
    passes += [SearchPass(1, 0), SearchPass(1, 1)]
    yield from (each for each in passes if each.pixels(size) <= max_pixels)
    bounded = SearchPass(math.sqrt(max_pixels / (size[0] * size[1])), 0)
    first = _fitting(longest, 2 * detector_side, 1)
    if first.pixels(size) < bounded.pixels(size) and bounded.scale < 2:
        yield bounded


# A view of the image and its faces, the largest first.
View: TypeAlias = tuple[Photo, list[Detection]]


@dataclass
class Search:
    """Search of one image for faces, upright and turned; see `find`."""

    image: Image.Image
    settings: AlignmentSettings
    _done: list[SearchPass] = field(default_factory=list)
    _refused: float | None = None  # best score of a detection that its own crop did not confirm

    def find(self) -> View:
        """Return the view that shows the faces upright, and these faces, at least one.

        The first pass that finds a face ends the search. With `faces` "largest" the caller takes
        the first face alone. Raises `Rejection` (`no_face`) that says which copies were searched.
        """
        upright = self._view(0)
        faces = self._search_coarsely(upright)
        if faces:
            return upright, faces
        for each in self._plan():
            result = self._search_turned(each) if each.turned else self._search(upright, each)
            if result:
                return result
        raise Rejection(RejectReason.NO_FACE, self._describe_search())

    def _plan(self) -> list[SearchPass]:
        passes = plan_passes(
            self.image.size,
            detector_side=self.settings.detector_side,
            search_pixels=self.settings.search_pixels,
            turns=self.settings.turns == "auto",
        )
        if self.settings.faces == "largest":
            return passes
        # A small copy that shows a large face may hide the small ones: begin with a copy for all.
        first, size = self._all_faces_pass(), self.image.size
        return [first, *(p for p in passes if p.turned or p.pixels(size) > first.pixels(size))]

    def _all_faces_pass(self) -> SearchPass:
        """Return the pass whose copy shows every face of `min_face_px` or more."""
        side = 2 * self.settings.detector_side
        return SearchPass(all_faces_scale(self.image.size, self.settings.min_face_px, side), 0)

    def _view(self, turn_deg: int) -> Photo:
        return Photo(self.image, turn_deg, max(FFHQ_SIZE, *self.settings.output_size))

    def _detect(self, photo: Photo, search_pass: SearchPass) -> list[Detection]:
        return find_faces(
            photo.image,
            search_pass.scale,
            search_pass.upsample,
            min_score=self.settings.min_score,
        )

    def _search_coarsely(self, photo: Photo) -> list[Detection]:
        """Return the face of a small grey copy if it is the only one and sure; else none.

        A portrait needs no larger copy. To tell which of several faces is the largest does.
        """
        if not self.settings.coarse_side or self.settings.faces == "all":
            return []
        scale = min(self.settings.coarse_side / max(photo.image.size), 1)
        faces = find_faces(photo.image, scale, min_score=self.settings.min_score, frontal=True)
        sure = _FRONTAL_SURE * self.settings.check_below
        is_sure = len(faces) == 1 and faces[0].score >= sure and not self._is_small(faces[0])
        return faces if is_sure else []

    def _search(self, photo: Photo, search_pass: SearchPass) -> View | None:
        """Search the upright photo; if its faces are unclear, prefer a turn that is clear."""
        self._done.append(search_pass)
        faces = self._likely(photo, self._detect(photo, search_pass))
        if not faces:
            return None
        if self.settings.turns == "auto" and not self._is_clear(photo, faces):
            for turned in self._turned_passes(search_pass):
                result = self._search_turned(turned)
                if result:
                    return result
        return photo, faces

    def _turned_passes(self, search_pass: SearchPass) -> list[SearchPass]:
        """Return the turned passes to compare with an upright pass whose faces are unclear."""
        if self.settings.faces == "largest":
            return [SearchPass(search_pass.scale, search_pass.upsample, turned=True)]
        scale = min(self.settings.detector_side / max(self.image.size), 1)
        return [SearchPass(scale, 0, turned=True), SearchPass(scale, 1, turned=True)]

    def _search_turned(self, search_pass: SearchPass) -> View | None:
        """Return the turn whose best face is the clearest in its own crop, if it is clear."""
        if search_pass in self._done:
            return None
        self._done.append(search_pass)
        best: tuple[float, View] = (0.0, (self._view(0), []))
        for turn_deg in TURNS:
            photo = self._view(turn_deg)
            faces = self._detect(photo, search_pass)
            large = [face for face in faces if not self._is_small(face)]
            if large:
                score = self._score(photo, max(large, key=lambda face: face.score))
                best = max(best, (score, (photo, faces)), key=lambda pair: pair[0])
        score, (photo, faces) = best
        if score < CLEAR:
            return None
        if self.settings.faces == "all":
            faces = self._likely(photo, self._detect(photo, self._all_faces_pass())) or faces
        # As if the photo had been stored upright.
        return photo, self._search_coarsely(photo) or self._likely(photo, faces) or faces

    def _likely(self, photo: Photo, faces: list[Detection]) -> list[Detection]:
        """Return the likely faces; with `faces` "largest", all from the first likely one on."""
        if self.settings.faces == "all":
            return [face for face in faces if self._is_likely(photo, face)]
        likely = (i for i, face in enumerate(faces) if self._is_likely(photo, face))
        return faces[next(likely, len(faces)) :]

    def _is_likely(self, photo: Photo, face: Detection) -> bool:
        # A face under the size limit becomes a reject anyway: its crop is not checked.
        small, sure = self._is_small(face), self._is_sure(face)
        if small or sure or self._score(photo, face) >= PLAUSIBLE:
            return True
        self._refused = max(face.score, self._refused or 0.0)
        return False

    def _is_clear(self, photo: Photo, faces: list[Detection]) -> bool:
        """Return whether a face in use shows without doubt that the photo is upright."""
        used = faces[:1] if self.settings.faces == "largest" else faces
        return any(
            self._is_sure(face) or self._score(photo, face) >= CLEAR
            for face in used
            if not self._is_small(face)
        )

    def _is_small(self, face: Detection) -> bool:
        return face.side < self.settings.min_face_px

    def _is_sure(self, face: Detection) -> bool:
        return face.score >= self.settings.check_below

    def _score(self, photo: Photo, face: Detection) -> float:
        """Return the detector's score of `face` in its own crop; 0 if it has no crop."""
        try:
            return photo.score_in_crop(face)
        except Rejection:
            return 0.0

    def _describe_search(self) -> str:
        """Return the `no_face` detail: what was searched, and which flags search more."""
        size, settings = self.image.size, self.settings
        text = f"no face found in {size[0]}×{size[1]} pixels"
        upright = [each for each in self._done if not each.turned]
        turned = [each for each in self._done if each.turned]
        if settings.is_basic_search:
            return f"{text} ({self._describe_basic_search()})"
        searched = [f"{_largest_copy(upright, size)} pixels upright"]
        if turned:
            searched.append(f"{_largest_copy(turned, size)} turned by 90, 180 and 270 degrees")
        text += f" (searched at up to {', and at up to '.join(searched)})"
        largest = max(each.pixels(size) for each in upright)
        whole = SearchPass(1, 1).pixels(size)
        if largest < whole and settings.search_pixels < MOST_SEARCH_PIXELS:
            text += f"; --search-pixels above {settings.search_pixels} searches larger copies"
        if self._refused is not None:
            text += (
                f"; what scored {self._refused:.2f} is no face in its own crop: --check-below 0 "
                "takes it for one"
            )
        return text

    def _describe_basic_search(self) -> str:
        """Describe a basic search; the text is fixed, since tables with such rejects resume."""
        side, faces = self.settings.detector_side, self.settings.faces
        if faces == "all":
            return f"faces of {self.settings.min_face_px:g} px and more were looked for"
        passes = ((side, 0), (side, 1), (2 * side, 1))
        return f"at most {', '.join(f'{px} px upsample {n}' for px, n in passes)} tried"


def _largest_copy(passes: list[SearchPass], size: tuple[int, int]) -> str:
    width, height = max((each.searched_size(size) for each in passes), key=lambda edges: edges[0])
    return f"{width}×{height}"
