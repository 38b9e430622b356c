from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.alignment.detection import _detector, all_faces_scale, find_faces, find_landmarks
from tests.alignment.drawn import drawn_face, scene


def test_a_drawn_face_is_found_in_place() -> None:
    (face,) = find_faces(drawn_face(400))
    assert 200 < face.side < 230
    assert (face.left + face.right) / 2 == pytest.approx(200, abs=10)
    assert face.score > 1


def test_boxes_are_scaled_back_to_the_full_image() -> None:
    (small,) = find_faces(drawn_face(500))
    (large,) = find_faces(drawn_face(1600))
    assert large.side / small.side == pytest.approx(1600 / 500, rel=0.1)


def test_no_face_is_found_in_a_plain_image() -> None:
    assert find_faces(scene(300, 200), 1, 1) == []


def test_a_small_face_needs_a_doubled_copy() -> None:
    image = scene(500, 400, (200, 150, 80))
    assert find_faces(image) == []
    (face,) = find_faces(image, 1, 1)
    assert 35 < face.side < 60


def test_threads_search_one_after_another() -> None:
    images = [drawn_face(300 + 20 * n) for n in range(8)]
    alone = [find_faces(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_faces, images)) == alone


def test_the_frontal_filter_is_the_first_of_five() -> None:
    image = drawn_face(400).convert("L")
    boxes, scores, filters = _detector().run(np.asarray(image), 0)
    assert list(filters) == [0]
    (face,) = find_faces(image, frontal=True)
    assert (face.left, face.top, face.score) == (boxes[0].left(), boxes[0].top(), scores[0])
    leaning = image.rotate(20)
    assert find_faces(leaning), "by another filter"
    assert not find_faces(leaning, frontal=True)


def test_the_largest_face_comes_first() -> None:
    for small, large in [((0, 0, 200), (210, 80, 300)), ((310, 0, 200), (0, 80, 300))]:
        faces = find_faces(scene(512, 400, small, large), 1, 1)
        assert [face.side for face in faces] == sorted((f.side for f in faces), reverse=True)
        assert len(faces) == 2
        assert abs((faces[0].left + faces[0].right) / 2 - (large[0] + 150)) < 20


@pytest.mark.parametrize(
    ("size", "smallest", "searched"),
    [
        ((1024, 512), 32, (2560, 1280)),
        ((1024, 512), 400, (1792, 896)),  # as fine as the last first copy
        ((300, 200), 400, (600, 400)),
        ((8000, 4000), 32, (8000, 4000)),  # limited to 32 million pixels
        ((300, 300), 1, (5657, 5657)),
    ],
)
def test_the_copy_for_all_faces_shows_the_smallest(
    size: tuple[int, int], smallest: int, searched: tuple[int, int]
) -> None:
    scale = all_faces_scale(size, smallest, 896)
    assert tuple(round(edge * scale) for edge in size) == searched


def test_a_score_threshold_drops_weak_detections() -> None:
    (face,) = find_faces(drawn_face(400))
    assert find_faces(drawn_face(400), min_score=face.score + 0.5) == []


def test_landmarks_match_the_drawn_features() -> None:
    image = drawn_face(800)
    (face,) = find_faces(image)
    points = find_landmarks(np.asarray(image), face)
    assert points.shape == (68, 2)
    assert points.dtype == np.float32
    drawn = {"eyes": (400, 387), "nose": (400, 515), "mouth": (400, 608)}
    means = {
        "eyes": points[36:48].mean(axis=0),
        "nose": points[31:36].mean(axis=0),
        "mouth": points[48:60].mean(axis=0),
    }
    for feature, place in drawn.items():
        assert means[feature] == pytest.approx(place, abs=20), feature
