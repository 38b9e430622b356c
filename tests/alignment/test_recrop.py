"""A stored quad gives the crop of the first alignment again."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.alignment.photo import turned
from pipeline.alignment.recrop import crop_again
from tests.alignment.drawn import scene
from tests.images.encoded import encode


@pytest.mark.parametrize(
    ("name", "turn"), [("portraits/0002.jpg", 0), ("rejects/upside-down.jpg", 180)]
)
def test_stored_quad_gives_the_same_crop(
    name: str, turn: int, sample_images: dict[str, bytes]
) -> None:
    settings = AlignmentSettings(output_size=(64, 64))
    (face,) = Aligner(settings).align(sample_images[name]).faces
    assert face.turn_deg == turn
    crop = crop_again(sample_images[name], settings, face.align_quad, turn)
    assert np.abs(crop.astype(int) - face.pixels).max() <= 1


def test_quarter_turns_are_undone_too() -> None:
    settings = AlignmentSettings(output_size=(64, 64))
    for degrees in (90, 270):
        content = encode(turned(scene(640, 480, (100, 40, 400)), degrees), "PNG")
        (face,) = Aligner(settings).align(content).faces
        assert face.turn_deg == 360 - degrees
        crop = crop_again(content, settings, face.align_quad, face.turn_deg)
        assert np.abs(crop.astype(int) - face.pixels).max() <= 1


def test_face_of_a_photo_needs_a_quad(sample_images: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="no quad"):
        crop_again(sample_images["portraits/0002.jpg"], AlignmentSettings(), None)
