"""Turned photos, small faces in large ones, and what is no face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import (
    AlignedFace,
    Aligner,
    AlignmentSettings,
    IsolatedAligner,
    crop_quad,
)
from pipeline.alignment.check import CLEAR, score_in_crop
from pipeline.alignment.detection import find_faces
from pipeline.alignment.rotation import box_before, points_before, turned
from pipeline.images import Rejection, RejectReason, decode
from tests.alignment.drawn import drawn_face, scene
from tests.images.encoded import encode, picture

BEFORE: dict[str, Any] = {"turns": "none", "search_pixels": 0, "check_below": 0.0}
PORTRAITS = [f"portraits/{number:04}.jpg" for number in (2, 6, 9, 12)]


def align(image: Image.Image, **settings: Any) -> list[AlignedFace]:
    return Aligner(AlignmentSettings(**settings)).align(encode(image, "PNG")).faces


def rejection(image: Image.Image, **settings: Any) -> Rejection:
    with pytest.raises(Rejection) as caught:
        align(image, **settings)
    return caught.value


def same_row(face: AlignedFace, other: AlignedFace) -> bool:
    left_out = {"turn_deg": 0, "pixels": 0}
    one, two = (vars(each) | left_out for each in (face, other))
    same = all(np.array_equal(one[name], two[name]) for name in one)
    return same and np.array_equal(face.pixels, other.pixels)


@pytest.mark.parametrize("name", PORTRAITS)
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_portrait_gives_the_crop_of_the_upright_one(
    sample_images: dict[str, bytes], name: str, turn: int
) -> None:
    image = decode(sample_images[name])
    (upright,) = align(image)
    stored = turned(image, 360 - turn)
    (face,) = align(stored)
    assert (face.turn_deg, upright.turn_deg) == (turn, 0)
    assert np.array_equal(face.pixels, upright.pixels)
    assert (face.width, face.height) == stored.size
    for name in ("face_px", "roll_deg", "yaw", "sharpness", "pad_fraction", "detector_score"):
        assert getattr(face, name) == getattr(upright, name), name
    # Coordinates are of the photo as it is stored: they turn with it.
    for name in ("landmarks", "align_quad"):
        expected = points_before(getattr(upright, name), turn, stored.size)
        assert getattr(face, name) == pytest.approx(expected, abs=1e-3), name
    assert upright.face_box is not None
    assert face.face_box == pytest.approx(box_before(upright.face_box, turn, stored.size), abs=1e-3)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_the_quad_cuts_the_crop_out_of_the_stored_photo(turn: int) -> None:
    stored = turned(scene(640, 480, (100, 40, 400)), 360 - turn)
    (face,) = align(stored)
    assert face.turn_deg == turn
    assert face.align_quad is not None
    again = np.asarray(crop_quad(stored, face.align_quad))
    assert np.abs(again.astype(int) - face.pixels).mean() < 1


def test_coordinates_follow_the_exif_orientation() -> None:
    """A photo that its EXIF turns by 90 degrees, and that is still on its head then."""
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = turned(scene(640, 480, (100, 40, 400)), 180)
    stored = shown.transpose(Image.Transpose.ROTATE_90)
    (face,) = Aligner().align(encode(stored, "PNG", exif=exif)).faces
    (expected,) = align(shown)
    assert (face.turn_deg, face.width, face.height) == (180, 640, 480)
    assert same_row(face, expected)


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_upright_photos_keep_their_rows(sample_images: dict[str, bytes], faces: str) -> None:
    for name in ("portraits/0001.jpg", "portraits/0012.jpg", "unusual/two-faces.jpg"):
        image = decode(sample_images[name])
        found, before = align(image, faces=faces), align(image, faces=faces, **BEFORE)
        assert len(found) == len(before)
        for face, earlier in zip(found, before, strict=True):
            assert same_row(face, earlier)
            assert (face.turn_deg, earlier.turn_deg) == (0, None)


def test_all_faces_of_a_turned_photo_are_found(sample_images: dict[str, bytes]) -> None:
    image = decode(sample_images["unusual/two-faces.jpg"])
    upright = align(image, faces="all")
    found = align(turned(image, 90), faces="all")
    assert [face.turn_deg for face in found] == [270, 270]
    for face, expected in zip(found, upright, strict=True):
        assert np.array_equal(face.pixels, expected.pixels)


def test_prealigned_images_are_not_turned() -> None:
    (face,) = align(turned(drawn_face(300), 180), prealigned=True)
    assert face.turn_deg is None
    assert "turn_deg" not in face.facts()
    assert not {*BEFORE} & AlignmentSettings(prealigned=True).result_settings().keys()


# What the detector takes for a face, with a score of 0.19, is a face on its head.
HEAD_DOWN = "portraits/0006.jpg"


def test_a_face_on_its_head_is_no_face(sample_images: dict[str, bytes]) -> None:
    image = turned(decode(sample_images[HEAD_DOWN]), 180)
    (wrong,) = align(image, **BEFORE)
    assert wrong.detector_score == pytest.approx(0.19, abs=0.01)
    assert score_in_crop(Image.fromarray(wrong.pixels)) == 0
    told = rejection(image, **BEFORE | {"check_below": 1.5})
    assert told.reason is RejectReason.NO_FACE
    assert "what scored 0.19 is no face in its own crop: --check-below 0" in told.detail


def test_a_texture_is_no_face() -> None:
    """Cloth, as far as the detector can tell: it finds a face with a score of 0.02."""
    noise = np.random.default_rng(327).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    cloth = Image.fromarray(noise).resize((448, 448), Image.Resampling.BICUBIC)
    (wrong,) = align(cloth, **BEFORE)
    assert wrong.face_px == pytest.approx(37, abs=2)
    for faces in ("largest", "all"):
        assert rejection(cloth, faces=faces).reason is RejectReason.NO_FACE


def test_a_crop_shows_its_face_once_more(sample_images: dict[str, bytes]) -> None:
    for name in PORTRAITS:
        (face,) = align(decode(sample_images[name]))
        crop = Image.fromarray(face.pixels)
        assert score_in_crop(crop) > CLEAR
        assert score_in_crop(crop.resize((512, 512))) > CLEAR
        for degrees in (90, 180, 270):
            assert score_in_crop(turned(crop, degrees)) < CLEAR


def small_face(
    samples: dict[str, bytes], size: tuple[int, int], side: int, turn: int = 0
) -> tuple[Image.Image, tuple[float, float]]:
    """A photo with a face of `side` pixels in its lower right part, and the face's centre."""
    portrait = decode(samples["portraits/0003.jpg"])
    (face,) = find_faces(portrait)
    scale = side / face.side
    edges = round(portrait.width * scale), round(portrait.height * scale)
    photo = picture(64, 48).resize(size, Image.Resampling.BICUBIC)
    place = round(size[0] * 0.7), round(size[1] * 0.6)
    small = portrait.resize(edges, Image.Resampling.LANCZOS)
    photo.paste(turned(small, -turn % 360), place)
    return photo, (place[0] + edges[0] / 2, place[1] + edges[1] / 2)


@pytest.mark.parametrize(
    ("size", "side", "turn"),
    [((4032, 3024), 100, 0), ((1200, 900), 36, 0), ((1024, 768), 46, 270)],
)
def test_a_small_face_in_a_large_photo_is_found(
    sample_images: dict[str, bytes], size: tuple[int, int], side: int, turn: int
) -> None:
    photo, centre = small_face(sample_images, size, side, turn)
    (face,) = align(photo)
    assert face.turn_deg == turn
    assert face.face_px == pytest.approx(side, rel=0.25)
    assert face.face_box is not None
    middle = face.face_box.reshape(2, 2).mean(axis=0)
    assert middle == pytest.approx(centre, abs=side / 2)


def test_a_face_too_small_for_the_search_names_the_flag(sample_images: dict[str, bytes]) -> None:
    photo, _ = small_face(sample_images, (1200, 900), 36)
    told = rejection(photo, search_pixels=0, turns="none")
    assert "--search-pixels above 0 searches larger copies" in told.detail
    assert align(photo, search_pixels=8_000_000, turns="none")


def test_a_reject_tells_what_was_searched() -> None:
    image = picture(600, 500)
    told = rejection(image).detail
    assert told == (
        "no face found in 600×500 pixels (searched at up to 1200×1000 pixels upright, and at up to "
        "1200×1000 turned by 90, 180 and 270 degrees)"
    )
    few = rejection(picture(900, 700), turns="none", search_pixels=1000).detail
    assert "(searched at up to 1792×1394 pixels upright); --search-pixels above 1000" in few
    every = rejection(image, faces="all").detail
    assert "(searched at up to 1500×1250 pixels upright, and" in every
    assert "--search-pixels" not in every


@pytest.mark.parametrize(
    ("faces", "told"),
    [
        ("largest", "at most 448 px upsample 0, 448 px upsample 1, 896 px upsample 1 tried"),
        ("all", "faces of 32 px and more were looked for"),
    ],
)
def test_earlier_settings_keep_the_text_of_rejects(faces: str, told: str) -> None:
    expected = f"no face found in 600×500 pixels ({told})"
    assert rejection(picture(600, 500), faces=faces, **BEFORE).detail == expected


def test_a_face_of_any_score_is_found_by_its_crop() -> None:
    image = scene(512, 400, (0, 0, 200), (210, 80, 300))
    (clear,) = align(image, check_below=100.0)
    assert clear.turn_deg == 0, "an upright face that is clear in its crop needs no turn"
    (turned_face,) = align(turned(image, 180), check_below=100.0)
    assert turned_face.turn_deg == 180


def test_a_crop_that_cannot_be_cut_is_no_face(monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(*_: Any) -> Any:
        raise Rejection(RejectReason.NO_FACE, "the face lies outside of the image")

    monkeypatch.setattr("pipeline.alignment.photo.crop_quad", outside)
    assert "no face in its own crop" in rejection(drawn_face(400), check_below=100.0).detail


@pytest.mark.slow
def test_the_largest_search_stays_within_its_memory() -> None:
    """A photo of 16 megapixels without a face: 1.3 GB of address space, of 6 that it may have."""
    noise = np.random.default_rng(0).integers(0, 256, (108, 144, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((4608, 3456), Image.Resampling.BICUBIC)
    settings = replace(AlignmentSettings(), memory_limit_mib=3072, row_timeout_s=300.0)
    with IsolatedAligner(settings) as aligner:
        (outcome,) = aligner.process([encode(photo, "JPEG")])
    assert isinstance(outcome, Rejection)
    assert outcome.reason is RejectReason.NO_FACE
    assert "9216×6912" in outcome.detail


CASES = [("rot180_noexif.jpg", 180), ("side_female_32.jpg", 90), ("phone12mp_100px.jpg", 0)]


@pytest.mark.parametrize(("name", "turn"), CASES)
def test_reported_photos_give_upright_faces(shared: Path, name: str, turn: int) -> None:
    path = shared / "cases" / "faces" / name
    if not path.is_file():
        pytest.skip(f"no reported photo at {path}")
    (face,) = Aligner().align(path.read_bytes()).faces
    assert face.turn_deg == turn
    assert face.roll_deg == pytest.approx(0, abs=20)
    assert score_in_crop(Image.fromarray(face.pixels)) > CLEAR
