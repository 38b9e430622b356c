"""Search of turned photos, of small faces in large photos, and of images without a face."""

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
from pipeline.alignment.detection import find_faces
from pipeline.alignment.photo import CLEAR, box_before, points_before, score_in_crop, turned
from pipeline.alignment.search import SearchPass, plan_passes
from pipeline.choices import COARSE_SIDE, EARLIER_SEARCH
from pipeline.images import Rejection, RejectReason, decode
from tests.alignment.drawn import drawn_face, scene
from tests.images.encoded import encode, picture

BASIC = dict(EARLIER_SEARCH)
PORTRAITS = [f"portraits/{number:04}.jpg" for number in (2, 6, 9, 12)]


def align(image: Image.Image, **settings: Any) -> list[AlignedFace]:
    return Aligner(AlignmentSettings(**settings)).align(encode(image, "PNG")).faces


def rejection(image: Image.Image, **settings: Any) -> Rejection:
    with pytest.raises(Rejection) as caught:
        align(image, **settings)
    return caught.value


def same_row(face: AlignedFace, other: AlignedFace) -> bool:
    left_out = {"turn_deg": 0, "pixels": 0}
    row, other_row = (vars(each) | left_out for each in (face, other))
    same = all(np.array_equal(row[name], other_row[name]) for name in row)
    return same and np.array_equal(face.pixels, other.pixels)


@pytest.mark.parametrize("name", PORTRAITS)
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_portrait_gives_the_upright_crop(
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
    # Coordinates refer to the stored photo: they turn with it.
    for name in ("landmarks", "align_quad"):
        expected = points_before(getattr(upright, name), turn, stored.size)
        assert getattr(face, name) == pytest.approx(expected, abs=1e-3), name
    assert upright.face_box is not None
    assert face.face_box == pytest.approx(box_before(upright.face_box, turn, stored.size), abs=1e-3)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_the_quad_reproduces_the_crop_from_the_stored_photo(turn: int) -> None:
    stored = turned(scene(640, 480, (100, 40, 400)), 360 - turn)
    (face,) = align(stored)
    assert face.turn_deg == turn
    assert face.align_quad is not None
    again = np.asarray(crop_quad(stored, face.align_quad))
    assert np.abs(again.astype(int) - face.pixels).mean() < 1


def test_coordinates_follow_the_exif_orientation() -> None:
    """Align a photo that is upside down after its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    displayed = turned(scene(640, 480, (100, 40, 400)), 180)
    stored = displayed.transpose(Image.Transpose.ROTATE_90)
    (face,) = Aligner().align(encode(stored, "PNG", exif=exif)).faces
    (expected,) = align(displayed)
    assert (face.turn_deg, face.width, face.height) == (180, 640, 480)
    assert same_row(face, expected)


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_upright_photos_keep_their_rows(sample_images: dict[str, bytes], faces: str) -> None:
    for name in ("portraits/0001.jpg", "portraits/0012.jpg", "unusual/two-faces.jpg"):
        image = decode(sample_images[name])
        full, basic = align(image, faces=faces, coarse_side=0), align(image, faces=faces, **BASIC)
        assert len(full) == len(basic)
        for face, other in zip(full, basic, strict=True):
            assert same_row(face, other)
            assert (face.turn_deg, other.turn_deg) == (0, None)


def searched_sides(monkeypatch: pytest.MonkeyPatch, image: Image.Image, **more: Any) -> list[int]:
    """Return the longest side of each copy of `image` that is searched."""
    sides = []

    def record(photo: Image.Image, scale: float, upsample: int = 0, **options: Any) -> Any:
        sides.append(round(max(photo.size) * scale) << upsample)
        return find_faces(photo, scale, upsample, **options)

    monkeypatch.setattr("pipeline.alignment.search.find_faces", record)
    align(image, **more)
    return sides


def test_a_clear_portrait_needs_one_small_copy(
    sample_images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = decode(sample_images["portraits/0001.jpg"])
    assert searched_sides(monkeypatch, image) == [COARSE_SIDE]
    assert searched_sides(monkeypatch, image, coarse_side=0) == [448]
    # What a copy of 80 pixels misses is found as ever.
    assert searched_sides(monkeypatch, image, coarse_side=80) == [80, 448]
    assert same_row(*align(image, coarse_side=80), *align(image, coarse_side=0))


def test_several_faces_are_told_apart_on_a_larger_copy(sample_images: dict[str, bytes]) -> None:
    image = decode(sample_images["unusual/two-faces.jpg"])
    (face,), (other,) = align(image), align(image, coarse_side=0)
    assert face.n_faces == 2
    assert same_row(face, other)


def test_a_coarse_copy_gives_nearly_the_same_square(sample_images: dict[str, bytes]) -> None:
    shares = []
    for name in PORTRAITS:
        image = decode(sample_images[name])
        quad, other = (align(image, coarse_side=side)[0].align_quad for side in (0, COARSE_SIDE))
        assert quad is not None
        assert other is not None
        corners = np.linalg.norm(quad - other, axis=1).mean()
        shares.append(corners / np.linalg.norm(quad[3] - quad[0]))
    assert 0 < max(shares) < 0.02


def test_all_faces_of_a_turned_photo_are_found(sample_images: dict[str, bytes]) -> None:
    image = decode(sample_images["unusual/two-faces.jpg"])
    upright = align(image, faces="all")
    faces = align(turned(image, 90), faces="all")
    assert [face.turn_deg for face in faces] == [270, 270]
    for face, expected in zip(faces, upright, strict=True):
        assert np.array_equal(face.pixels, expected.pixels)


def test_prealigned_images_are_not_turned() -> None:
    (face,) = align(turned(drawn_face(300), 180), prealigned=True)
    assert face.turn_deg is None
    assert "turn_deg" not in face.facts()
    assert not {*BASIC} & AlignmentSettings(prealigned=True).result_settings().keys()


# Upside down, the detector finds a face in it with a score of 0.19.
UPSIDE_DOWN = "portraits/0006.jpg"


def test_a_weak_upside_down_detection_is_rejected(sample_images: dict[str, bytes]) -> None:
    image = turned(decode(sample_images[UPSIDE_DOWN]), 180)
    (wrong,) = align(image, **BASIC)
    assert wrong.detector_score == pytest.approx(0.19, abs=0.01)
    assert score_in_crop(Image.fromarray(wrong.pixels)) == 0
    refusal = rejection(image, **BASIC | {"check_below": 1.5})
    assert refusal.reason is RejectReason.NO_FACE
    assert "what scored 0.19 is no face in its own crop: --check-below 0" in refusal.detail


def test_a_detection_in_a_texture_is_rejected() -> None:
    """Reject noise in which the detector finds a face with a score of 0.02."""
    noise = np.random.default_rng(327).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    texture = Image.fromarray(noise).resize((448, 448), Image.Resampling.BICUBIC)
    (wrong,) = align(texture, **BASIC)
    assert wrong.face_px == pytest.approx(37, abs=2)
    for faces in ("largest", "all"):
        assert rejection(texture, faces=faces).reason is RejectReason.NO_FACE


def small_face(
    samples: dict[str, bytes], size: tuple[int, int], side: int, turn: int = 0
) -> tuple[Image.Image, tuple[float, float]]:
    """Return a photo with a face of `side` pixels at its lower right, and the face's centre."""
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


def test_a_missed_small_face_names_the_search_flag(sample_images: dict[str, bytes]) -> None:
    photo, _ = small_face(sample_images, (1200, 900), 36)
    refusal = rejection(photo, search_pixels=0, turns="none")
    assert "--search-pixels above 0 searches larger copies" in refusal.detail
    assert align(photo, search_pixels=8_000_000, turns="none")


def test_a_reject_says_what_was_searched() -> None:
    image = picture(600, 500)
    detail = rejection(image).detail
    assert detail == (
        "no face found in 600×500 pixels (searched at up to 1200×1000 pixels upright, and at up to "
        "1200×1000 turned by 90, 180 and 270 degrees)"
    )
    limited = rejection(picture(900, 700), turns="none", search_pixels=1000).detail
    assert "(searched at up to 1792×1394 pixels upright); --search-pixels above 1000" in limited
    every = rejection(image, faces="all").detail
    assert "(searched at up to 1500×1250 pixels upright, and" in every
    assert "--search-pixels" not in every


@pytest.mark.parametrize(
    ("faces", "searched"),
    [
        ("largest", "at most 448 px upsample 0, 448 px upsample 1, 896 px upsample 1 tried"),
        ("all", "faces of 32 px and more were looked for"),
    ],
)
def test_a_basic_search_keeps_its_reject_text(faces: str, searched: str) -> None:
    expected = f"no face found in 600×500 pixels ({searched})"
    assert rejection(picture(600, 500), faces=faces, **BASIC).detail == expected


def test_a_clear_crop_confirms_any_score() -> None:
    image = scene(512, 400, (0, 0, 200), (210, 80, 300))
    (clear,) = align(image, check_below=100.0)
    assert clear.turn_deg == 0, "an upright face that is clear in its crop needs no turn"
    (turned_face,) = align(turned(image, 180), check_below=100.0)
    assert turned_face.turn_deg == 180


def test_a_detection_without_a_crop_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(*_: Any) -> Any:
        raise Rejection(RejectReason.NO_FACE, "the face lies outside of the image")

    monkeypatch.setattr("pipeline.alignment.photo.crop_quad", outside)
    assert "no face in its own crop" in rejection(drawn_face(400), check_below=100.0).detail


@pytest.mark.slow
def test_the_largest_search_stays_within_its_memory() -> None:
    """A photo of 16 megapixels without a face needs 1.3 GB of address space; the limit is 6 GB."""
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


SIZES = [(100, 80), (448, 300), (1024, 1024), (2000, 1500), (4608, 3456), (7000, 100), (9000, 7000)]


def plan(size: tuple[int, int], max_pixels: int, *, turns: bool = True) -> list[SearchPass]:
    return plan_passes(size, detector_side=448, search_pixels=max_pixels, turns=turns)


def test_a_basic_search_has_three_passes() -> None:
    assert plan((1000, 800), 0, turns=False) == [
        SearchPass(0.448, 0),
        SearchPass(0.448, 1),
        SearchPass(0.896, 1),
    ]
    assert plan((400, 300), 0, turns=False) == [SearchPass(1, 0), SearchPass(1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_pixels", [0, 1_000_000, 64_000_000])
def test_larger_copies_follow_the_first_ones(size: tuple[int, int], max_pixels: int) -> None:
    first = plan(size, 0, turns=False)
    upright = [each for each in plan(size, max_pixels) if not each.turned]
    assert upright[: len(first)] == first
    assert [each for each in upright if each not in first] == [
        each for each in plan(size, max_pixels, turns=False) if each not in first
    ]
    larger = [each for each in upright if each not in first]
    assert [each.pixels(size) for each in larger] == sorted(each.pixels(size) for each in larger)
    # A copy's sides are rounded to whole pixels.
    assert all(each.pixels(size) < max_pixels * 1.01 for each in larger)


@pytest.mark.parametrize("size", SIZES)
def test_16_megapixels_are_searched_like_the_reference(
    size: tuple[int, int],
) -> None:
    passes = plan(size, 64_000_000)
    if size[0] * size[1] <= 16_000_000:
        assert {SearchPass(1, 0), SearchPass(1, 1)} <= set(passes)
    assert max(each.pixels(size) for each in passes) <= 64_100_000


def test_large_photos_are_enlarged_up_to_the_limit() -> None:
    passes = plan((6000, 4000), 64_000_000, turns=False)
    assert SearchPass(1, 0) in passes
    assert passes[-1].pixels((6000, 4000)) == pytest.approx(64e6, rel=0.001)
    assert plan((9000, 7000), 16_000_000, turns=False)[-1].scale == pytest.approx(0.504, abs=0.001)


def test_turned_passes_cost_less_than_the_limit() -> None:
    for size in SIZES:
        for max_pixels in (1_000_000, 64_000_000):
            passes = plan(size, max_pixels)
            turned = [each for each in passes if each.turned]
            assert turned, size
            larger = [each for each in turned if each not in plan(size, 0)]
            assert all(4 * each.pixels(size) <= max_pixels for each in larger)


def test_no_pass_is_planned_twice() -> None:
    for size in SIZES:
        passes = plan(size, 64_000_000)
        assert len(set(passes)) == len(passes)
