from __future__ import annotations

from typing import Any

import dlib
import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import AlignedFace, Aligner, AlignmentSettings
from pipeline.alignment.detection import Detection, find_faces, find_landmarks
from pipeline.errors import ConfigError
from pipeline.images import Rejection, RejectReason, decode
from tests.alignment.drawn import SKY, drawn_face, scene
from tests.images.encoded import encode, picture


def align(image: Image.Image, **settings: Any) -> list[AlignedFace]:
    return Aligner(AlignmentSettings(**settings)).align(encode(image, "PNG")).faces


def two_portraits(samples: dict[str, bytes], small: int) -> Image.Image:
    """Draw a face of 700 pixels left and one of `small` pixels right, on 2048 × 1400 pixels."""
    canvas = Image.new("RGB", (2048, 1400), SKY)
    for number, side, place in ((3, 700, (40, 20)), (6, small, (1600, 900))):
        portrait = decode(samples[f"portraits/{number:04}.jpg"])
        (face,) = find_faces(portrait)
        scale = side / face.side
        size = round(portrait.width * scale), round(portrait.height * scale)
        canvas.paste(portrait.resize(size, Image.Resampling.LANCZOS), place)
    return canvas


def reason(image: Image.Image, **settings: Any) -> RejectReason:
    with pytest.raises(Rejection) as caught:
        align(image, **settings)
    return caught.value.reason


def test_dlib_models_are_built_once_per_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligner, built = Aligner(), list[str]()

    def count(name: str) -> None:
        build = getattr(dlib, name)
        monkeypatch.setattr(dlib, name, lambda *args: built.append(name) or build(*args))

    count("get_frontal_face_detector")
    count("shape_predictor")
    for each in (aligner, aligner, Aligner()):
        assert len(each.align(encode(drawn_face(300), "PNG")).faces) == 1
    assert built == []


def test_every_field_of_the_table_is_filled() -> None:
    (face,) = align(scene(640, 480, (100, 40, 400)))
    assert (face.face_index, face.n_faces, face.width, face.height) == (0, 1, 640, 480)
    assert face.pixels.shape == (256, 256, 3)
    assert face.pixels.dtype == np.uint8
    for array, shape in (
        (face.face_box, (4,)),
        (face.landmarks, (68, 2)),
        (face.align_quad, (4, 2)),
    ):
        assert array is not None
        assert array.shape == shape
        assert array.dtype == np.float32
    assert face.face_px is not None
    assert 200 < face.face_px < 260
    assert face.roll_deg == pytest.approx(0, abs=3)
    assert face.yaw == pytest.approx(0, abs=0.1)
    assert face.sharpness > 0
    assert face.pad_fraction == 0
    assert face.detector_score is not None
    assert face.detector_score > 1


def test_eyes_are_placed_as_in_ffhq() -> None:
    (face,) = align(drawn_face(800))
    assert face.landmarks is not None
    assert face.align_quad is not None
    origin, right, down = face.align_quad[0], face.align_quad[3], face.align_quad[1]
    side = np.hypot(*(right - origin))
    eyes = face.landmarks[36:48].mean(axis=0) - origin
    at = np.array([eyes @ (right - origin), eyes @ (down - origin)]) / side**2
    assert at == pytest.approx((0.5, 0.47), abs=0.02)


def test_a_turned_face_is_turned_upright() -> None:
    (level,) = align(drawn_face(600))
    (face,) = align(drawn_face(600).rotate(-15, Image.Resampling.BICUBIC, fillcolor=SKY))
    assert face.roll_deg == pytest.approx(15, abs=4)  # Pillow turns counter-clockwise
    inner = np.s_[60:200, 60:200]
    difference = np.abs(face.pixels[inner].astype(int) - level.pixels[inner])
    assert difference.mean() < 12


def test_exif_orientation_gives_the_same_face() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = drawn_face(400).transpose(Image.Transpose.ROTATE_90)
    (turned,) = Aligner().align(encode(stored, "PNG", exif=exif)).faces
    (upright,) = align(drawn_face(400))
    assert np.array_equal(turned.pixels, upright.pixels)


def test_grey_images_are_aligned_and_padded() -> None:
    (face,) = align(drawn_face(400).convert("L").crop((60, 100, 340, 380)))
    assert face.pad_fraction > 0.1
    assert np.ptp(face.pixels, axis=-1).max() <= 1


def test_all_faces_are_aligned_on_request() -> None:
    image = scene(512, 400, (0, 0, 200), (210, 80, 300))
    (largest,) = align(image)
    both = align(image, faces="all")
    assert [face.face_index for face in both] == [0, 1]
    assert {face.n_faces for face in both} == {2}
    assert largest.face_box is not None
    assert both[0].face_box is not None
    assert largest.face_box == pytest.approx(both[0].face_box, abs=25)
    assert largest.face_box[0] > 210


@pytest.mark.parametrize("small", [44, 90])
def test_a_large_face_does_not_hide_a_small_one(
    sample_images: dict[str, bytes], small: int
) -> None:
    image = two_portraits(sample_images, small)
    large, face = align(image, faces="all")
    assert (large.face_index, face.face_index, face.n_faces) == (0, 1, 2)
    assert face.face_px == pytest.approx(small, rel=0.2)
    assert face.face_box is not None
    assert face.face_box[0] > 1500
    assert face.landmarks is not None
    assert face.landmarks[:, 0].min() > 1500
    (largest,) = align(image)
    assert largest.face_box is not None
    assert largest.face_box[2] < 1500


def test_faces_far_under_the_limit_are_not_searched(
    sample_images: dict[str, bytes],
) -> None:
    image = two_portraits(sample_images, 44)
    (face,) = align(image, faces="all", min_face_px=100)
    assert face.n_faces == 1


def test_faces_under_the_limit_are_rejects() -> None:
    image = scene(512, 400, (0, 0, 200), (210, 80, 300))
    settings = AlignmentSettings(faces="all", min_face_px=130)
    alignment = Aligner(settings).align(encode(image, "PNG"))
    (face,) = alignment.faces
    assert (face.face_index, face.n_faces) == (0, 2)
    assert list(alignment.rejects) == [1]
    assert alignment.rejects[1].reason is RejectReason.FACE_TOO_SMALL
    assert "the limit is 130" in alignment.rejects[1].detail


def test_a_face_without_a_crop_affects_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def landmarks_outside_for_the_larger(pixels: Any, face: Detection) -> Any:
        return find_landmarks(pixels, face) + (9000 if face.side > 130 else 0)

    monkeypatch.setattr("pipeline.alignment.photo.find_landmarks", landmarks_outside_for_the_larger)
    content = encode(scene(512, 400, (0, 0, 200), (210, 80, 300)), "PNG")
    alignment = Aligner(AlignmentSettings(faces="all")).align(content)
    assert [face.face_index for face in alignment.faces] == [1]
    assert {i: each.reason for i, each in alignment.rejects.items()} == {0: RejectReason.NO_FACE}


def test_an_image_of_small_faces_is_one_reject() -> None:
    image = scene(512, 400, (0, 0, 200), (210, 80, 300))
    assert reason(image, min_face_px=200) is RejectReason.FACE_TOO_SMALL
    assert reason(image, faces="all", min_face_px=200) is RejectReason.FACE_TOO_SMALL


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_an_image_without_a_face_is_rejected(faces: str) -> None:
    assert reason(picture(300, 300), faces=faces) is RejectReason.NO_FACE


def test_later_passes_find_a_small_face() -> None:
    image = scene(2048, 1024, (1300, 500, 220))
    (face,) = align(image)
    assert face.face_box is not None
    assert 1300 < face.face_box[0] < face.face_box[2] < 1520


def test_decoding_errors_keep_their_reason() -> None:
    with pytest.raises(Rejection) as caught:
        Aligner().align(b"not an image")
    assert caught.value.reason is RejectReason.UNSUPPORTED_FORMAT
    assert reason(drawn_face(400), max_pixels=1000) is RejectReason.TOO_LARGE
    assert reason(drawn_face(400), min_side=500) is RejectReason.TOO_SMALL


def test_a_smaller_output_is_the_256_crop_resized() -> None:
    image = drawn_face(500)
    (small,) = align(image, output_size=(64, 64))
    (crop,) = align(image)
    resized = Image.fromarray(crop.pixels).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(small.pixels, np.asarray(resized))
    assert small.sharpness == crop.sharpness


def test_a_larger_output_is_cropped_at_that_size() -> None:
    (face,) = align(drawn_face(800), output_size=(512, 512))
    assert face.pixels.shape == (512, 512, 3)


def test_prealigned_images_are_only_resized() -> None:
    image = picture(512, 384)
    (face,) = align(image, prealigned=True, output_size=(192, 256))
    expected = image.resize((256, 192), Image.Resampling.BILINEAR)
    assert np.array_equal(face.pixels, np.asarray(expected))
    assert (face.width, face.height, face.n_faces, face.face_index) == (512, 384, 1, 0)
    assert face.pad_fraction == 0
    for absent in (face.face_box, face.landmarks, face.align_quad, face.face_px):
        assert absent is None
    assert face.roll_deg is face.yaw is face.detector_score is None


def test_the_same_bytes_give_the_same_face() -> None:
    first, second = align(drawn_face(700)), align(drawn_face(700))
    assert np.array_equal(first[0].pixels, second[0].pixels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"output_size": (192, 256)},
        {"output_size": (0, 0)},
        {"faces": "last"},
        {"prealigned": True, "fit": "squeeze"},
        {"fit": "crop"},
        {"icc": "embed"},
        {"turns": "some"},
        {"search_pixels": -1},
        {"search_pixels": 1 << 40},
        {"check_below": -0.5},
        {"check_below": float("nan")},
        {"detector_side": 40},
        {"min_face_px": 0},
        {"row_timeout_s": 0},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AlignmentSettings(**wrong)
