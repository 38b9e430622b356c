"""Turns of a photo, and the detector's score in a face's own crop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.alignment import Aligner
from pipeline.alignment.photo import CLEAR, box_before, points_before, score_in_crop, turned
from tests.alignment.test_search import PORTRAITS

SIZE = (7, 5)  # width, height


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_points_are_mapped_to_the_stored_photo(degrees: int) -> None:
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    view = np.asarray(turned(image, degrees))
    points = np.array([(x, y) for y in range(view.shape[0]) for x in range(view.shape[1])])
    before = points_before(points, degrees, SIZE)
    assert [view[y, x] for x, y in points] == [image.getpixel((x, y)) for x, y in before.tolist()]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_box_is_mapped_to_the_stored_photo(degrees: int) -> None:
    image = Image.new("L", SIZE)
    ImageDraw.Draw(image).rectangle((1, 2, 5, 3), fill=1)  # edges 1, 2, 6, 4
    view = np.asarray(turned(image, degrees))
    rows, columns = np.nonzero(view)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    assert box_before(box, degrees, SIZE).tolist() == [1, 2, 6, 4]


def test_turns_are_clockwise() -> None:
    image = Image.new("L", (3, 2))
    image.putpixel((0, 0), 9)
    assert turned(image, 90).getpixel((1, 0)) == 9, "the top left corner is at the top right"


def test_a_face_is_clear_only_in_an_upright_crop(sample_images: dict[str, bytes]) -> None:
    for name in PORTRAITS:
        (face,) = Aligner().align(sample_images[name]).faces
        crop = Image.fromarray(face.pixels)
        assert score_in_crop(crop) > CLEAR
        assert score_in_crop(crop.resize((512, 512))) > CLEAR
        for degrees in (90, 180, 270):
            assert score_in_crop(turned(crop, degrees)) < CLEAR
