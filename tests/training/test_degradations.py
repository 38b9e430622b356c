"""Each image is damaged in the same way in every epoch, independently of masked_last images."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.training.degradations import DEGRADATIONS, Degrader, parse_degradations

AMOUNTS = {"downsample": 8, "blur": 2, "mask": 0.25, "noise": 20, "gray": 1, "jpeg": 10}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return coloured stripes with an edge, uint8 [48, 64, 3]."""
    y, x = np.mgrid[0:48, 0:64]
    stripes = np.stack([x * 4, y * 5, (x // 4 % 2) * 200], axis=-1)
    return stripes.astype(np.uint8)


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_damage_of_an_image_is_reproducible(name: str, image: np.ndarray) -> None:
    text = f"{name}:{AMOUNTS[name]}"
    first = Degrader(text, seed=3)(image, 5)
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert not np.array_equal(first, image)
    np.testing.assert_array_equal(first, Degrader(text, seed=3)(image, 5))
    others = [Degrader(text, seed=4)(image, 5), Degrader(text, seed=3)(image, 6)]
    drawn = name in ("mask", "noise")
    assert [not np.array_equal(first, masked_last) for masked_last in others] == [drawn, drawn]


def test_damage_has_the_requested_amount(image: np.ndarray) -> None:
    masked = Degrader("mask:0.25", 0)(image, 0)
    assert (masked == 128).all(axis=-1).sum() == 24 * 32
    noise = Degrader("noise:10", 0)(np.full((128, 128, 3), 128, np.uint8), 0).astype(float) - 128
    assert noise.std() == pytest.approx(10, abs=0.3)
    gray = Degrader("gray", 0)(image, 0)
    assert (gray == gray[..., :1]).all()
    assert len(np.unique(Degrader("downsample:64", 0)(image, 0).reshape(-1, 3), axis=0)) == 1


def test_degradations_are_applied_in_order(image: np.ndarray) -> None:
    assert parse_degradations("gray, mask:0.5") == [("gray", 1), ("mask", 0.5)]
    grey, masked_last = (Degrader(text, 0)(image, 0) for text in ("gray,blur:3", "blur:3,mask:1"))
    assert (grey == grey[..., :1]).all()
    assert (masked_last == 128).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fog:2", "'fog' is not a degradation; valid: downsample"),
        ("blur", "blur takes a number from 0 to 256"),
        ("mask:1.5", "mask takes a number from 0 to 1"),
        ("jpeg:nan", "jpeg takes a number from 1 to 95"),
        ("gray,,", "'' is not a degradation"),
    ],
)
def test_invalid_degradations_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_degradations(text)
