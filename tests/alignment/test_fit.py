from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.alignment.fit import fit_to_size
from tests.images.encoded import encode, picture

SIZE = (192, 256)


def stripes(width: int, height: int) -> Image.Image:
    """Red, green and blue thirds, side by side."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, width * channel // 3 : width * (channel + 1) // 3, channel] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_right_proportions_are_resized_alike(fit: str) -> None:
    image = picture(1024, 768)
    result, padding = fit_to_size(image, SIZE, fit)  # type: ignore[arg-type]
    expected = image.resize((256, 192), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(result), np.asarray(expected))
    assert padding == 0


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = picture(256, 192)
    assert fit_to_size(image, SIZE, "crop")[0] is image


def test_a_crop_keeps_the_centre() -> None:
    result, padding = fit_to_size(stripes(600, 150), (100, 100), "crop")
    pixels = np.asarray(result)
    assert (pixels[:, :, 1] == 255).all()  # the middle quarter lies inside the green third
    assert padding == 0


def test_padding_is_black_and_counted() -> None:
    result, padding = fit_to_size(stripes(300, 100), (100, 100), "pad")
    pixels = np.asarray(result)
    assert pixels[:33].max() == pixels[67:].max() == 0
    assert pixels[50, [2, 50, 97]].argmax(axis=-1).tolist() == [0, 1, 2]
    assert padding == pytest.approx(0.67)


def test_a_narrow_image_fills_at_least_one_row() -> None:
    result, padding = fit_to_size(picture(2000, 40), (16, 16), "pad")
    assert result.size == (16, 16)
    assert padding == pytest.approx(15 / 16)


@pytest.mark.parametrize(("fit", "padding"), [("stretch", 0), ("crop", 0), ("pad", 0.25)])
def test_prealigned_images_follow_the_fit_setting(fit: str, padding: float) -> None:
    image = picture(256, 256)
    settings = AlignmentSettings(prealigned=True, fit=fit, output_size=SIZE)  # type: ignore[arg-type]
    (face,) = Aligner(settings).align(encode(image, "PNG")).faces
    expected, _ = fit_to_size(image, SIZE, fit)  # type: ignore[arg-type]
    assert np.array_equal(face.pixels, np.asarray(expected))
    assert face.pad_fraction == pytest.approx(padding)
    assert (face.width, face.height) == (256, 256)


def test_car_inputs_follow_the_published_transform(shared: Path) -> None:
    reference = shared / "reference"
    settings = AlignmentSettings(prealigned=True, output_size=SIZE)
    for pixels in np.load(reference / "inputs" / "x_u8.npy"):
        image = Image.fromarray(pixels)
        (face,) = Aligner(settings).align(encode(image, "PNG")).faces
        expected = image.resize((256, 192), Image.Resampling.BILINEAR)
        assert np.array_equal(face.pixels, np.asarray(expected))
