from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.alignment import ffhq_quad
from pipeline.images import Rejection, RejectReason


def face_points() -> NDArray[np.float64]:
    """Eyes at (90, 100) and (110, 100), mouth corners at (92, 130) and (108, 130)."""
    points = np.full((68, 2), 100.0)
    points[36:42], points[42:48] = (90, 100), (110, 100)
    points[48], points[54] = (92, 130), (108, 130)
    return points


def turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(points @ turn)


def test_a_level_face_gives_a_level_square() -> None:
    # Half side 1.8 × 30 (eyes to mouth outweighs 2.0 × 20); centre 3 below the eyes.
    expected = [(46, 49), (46, 157), (154, 157), (154, 49)]
    assert ffhq_quad(face_points()) == pytest.approx(np.array(expected))


def test_wide_eyes_set_the_size_where_they_outweigh_the_mouth() -> None:
    points = face_points()
    points[36:42], points[42:48] = (60, 100), (140, 100)
    quad = ffhq_quad(points)
    assert np.hypot(*(quad[3] - quad[0])) == pytest.approx(2 * 2.0 * 80)


@pytest.mark.parametrize("degrees", [-150.0, -20.0, 35.0, 90.0])
def test_the_square_turns_and_scales_with_the_face(degrees: float) -> None:
    points = face_points()
    assert ffhq_quad(turned(points, degrees) * 3.5) == pytest.approx(
        turned(ffhq_quad(points), degrees) * 3.5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_landmarks_that_are_not_finite_are_rejected(bad: float) -> None:
    points = face_points()
    points[40, 1] = bad
    with pytest.raises(Rejection) as caught:
        ffhq_quad(points)
    assert caught.value.reason is RejectReason.NOT_FINITE


def test_landmarks_that_fall_together_are_rejected() -> None:
    with pytest.raises(Rejection) as caught:
        ffhq_quad(np.full((68, 2), 7.0))
    assert caught.value.reason is RejectReason.NOT_FINITE
