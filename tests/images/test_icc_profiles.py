from __future__ import annotations

import io
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.images import ICC_IGNORED, ImageLimits, decode
from tests.images import icc_profiles as icc
from tests.images.encoded import encode, flat, jp2_with_profile, picture, psd_file

IGNORED = ImageLimits(icc="ignore")
P3 = icc.rgb_profile(icc.DISPLAY_P3)
ADOBE = icc.rgb_profile(icc.ADOBE_RGB, icc.gamma(563 / 256))
PROPHOTO = icc.rgb_profile(icc.PROPHOTO, icc.gamma(1.8), white=icc.D50)
# Within what each of these devices can show.
COLOURS = ((200, 100, 50), (60, 140, 90), (90, 80, 160), (255, 255, 255), (0, 0, 0), (128,) * 3)
WIDE = {
    "Display P3": (P3, icc.DISPLAY_P3, 2.4, icc.D65),
    "Adobe RGB": (ADOBE, icc.ADOBE_RGB, 563 / 256, icc.D65),
    "ProPhoto": (PROPHOTO, icc.PROPHOTO, 1.8, icc.D50),
}


def heif(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1, chroma=444, **options)
    return stream.getvalue()


def stored_as(device: str, colour: tuple[int, ...]) -> tuple[int, ...]:
    """Return the levels of an sRGB colour in a file of `device`."""
    _, primaries, power, white = WIDE[device]
    light = icc.to_xyz(icc.SRGB) @ icc.srgb_curve(np.array(colour) / 255)
    own = np.linalg.solve(icc.to_xyz(primaries, white), light).clip(0, 1)
    levels = icc.srgb_curve_inverse(own) if device == "Display P3" else own ** (1 / power)
    return tuple(int(level) for level in np.rint(levels * 255))


def decoded(content: bytes, limits: ImageLimits | None = None) -> tuple[int, ...]:
    image = decode(content, limits)
    assert ICC_IGNORED not in image.info
    value = image.getpixel((20, 20))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("device", WIDE)
def test_wide_colours_become_srgb(device: str, colour: tuple[int, ...]) -> None:
    content = encode(flat("RGB", stored_as(device, colour)), "PNG", icc_profile=WIDE[device][0])
    # In the shadows of a gamma of 1.8, half a level of the file is up to two levels of sRGB.
    assert decoded(content) == pytest.approx(colour, abs=2)


def test_profiles_change_saturated_colours() -> None:
    for profile in (P3, ADOBE, PROPHOTO):
        content = encode(flat("RGB", (60, 200, 60)), "PNG", icc_profile=profile)
        assert decoded(content)[0] < 30
        assert decoded(content, IGNORED) == (60, 200, 60)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JP2", "PSD"])
def test_profiles_are_applied_in_every_format(name: str) -> None:
    stored, right = stored_as("Display P3", (200, 100, 50)), (200, 100, 50)
    image = flat("RGB", stored)
    if name == "HEIF":
        content = heif(image, icc_profile=P3)
    elif name == "JP2":
        content = jp2_with_profile(image, P3)
    elif name == "PSD":
        content = psd_file(image, profile=P3)
    else:
        content = encode(image, name, icc_profile=P3, quality=100)
    assert decoded(content) == pytest.approx(right, abs=3)
    assert decoded(content, IGNORED) == pytest.approx(stored, abs=3)
    assert stored != pytest.approx(right, abs=6)


def srgb_by_lcms() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [srgb_by_lcms(), icc.rgb_profile(name="c2")])
def test_srgb_images_keep_their_bytes(name: str, profile: bytes) -> None:
    content = encode(picture(), name, icc_profile=profile)
    assert np.array_equal(decode(content), decode(encode(picture(), name)))


def test_a_profiles_name_does_not_count() -> None:
    named = icc.rgb_profile(icc.DISPLAY_P3, name="sRGB IEC61966-2.1")
    content = encode(flat("RGB", (60, 200, 60)), "PNG", icc_profile=named)
    assert decoded(content)[0] < 30


def test_grey_profiles_keep_grey() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    profile = icc.grey_profile(icc.gamma(1.0))
    image = np.asarray(decode(encode(Image.fromarray(levels), "PNG", icc_profile=profile)))
    expected = icc.srgb_curve_inverse(np.arange(256) / 255) * 255
    assert np.abs(image[0, :, 1] - expected).max() <= 1
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 2], image[..., 1])


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_before_conversion(name: str) -> None:
    half = Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))
    content = encode(half, name, icc_profile=icc.grey_profile(icc.gamma(1.0)))
    assert decoded(content) == pytest.approx((188, 188, 188), abs=1)


def test_the_srgb_curve_keeps_grey_bytes() -> None:
    image = picture().convert("L")
    content = encode(image, "PNG", icc_profile=icc.grey_profile(icc.srgb_curve))
    assert np.array_equal(np.asarray(decode(content))[..., 0], np.asarray(image))


def lab_of_swapped_inks(inks: NDArray[Any]) -> NDArray[Any]:
    """Return Lab colours of inks [n, 4] for a printer with cyan and yellow swapped."""
    light = 1 - np.minimum(inks[:, [2, 1, 0]] + inks[:, 3:], 1)
    xyz = (light @ icc.to_xyz(icc.SRGB).T) / icc.to_xyz(icc.SRGB).sum(axis=1)
    cubes = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = cubes.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_inks_follow_the_printers_profile(name: str) -> None:
    profile = icc.cmyk_profile(lab_of_swapped_inks)
    cyan = flat("CMYK", (255, 0, 0, 0))
    red, green, blue = decoded(encode(cyan, name, icc_profile=profile))
    assert red > 200
    assert green > 200
    assert blue < 120
    red, _, blue = decoded(encode(cyan, name))
    assert (red < 50, blue > 200) == (True, True)
    white = encode(flat("CMYK", (0, 0, 0, 0)), name, icc_profile=profile)
    assert decoded(white) == pytest.approx((255, 255, 255), abs=4)


def test_alpha_is_kept_by_conversion() -> None:
    half = flat("RGBA", (*stored_as("Display P3", (200, 100, 50)), 128))
    expected = [255 + (value - 255) * 128 / 255 for value in (200, 100, 50)]
    assert decoded(encode(half, "PNG", icc_profile=P3)) == pytest.approx(expected, abs=2)
    grey = encode(flat("LA", (128, 128)), "PNG", icc_profile=icc.grey_profile(icc.gamma(1.0)))
    assert decoded(grey) == pytest.approx([255 + (188 - 255) * 128 / 255] * 3, abs=2)


def test_transparency_is_applied_before_the_profile() -> None:
    content = encode(flat("RGB", (9, 200, 7)), "PNG", transparency=(9, 200, 7), icc_profile=P3)
    assert decoded(content) == (255, 255, 255)


def test_palettes_are_converted() -> None:
    palette = flat("RGB", stored_as("Display P3", (200, 100, 50))).quantize(4)
    content = encode(palette, "PNG", icc_profile=P3)
    assert decoded(content) == pytest.approx((200, 100, 50), abs=2)


def broken_white() -> bytes:
    return icc.rgb_profile(icc.DISPLAY_P3, lambda values: values * 0.1)


@pytest.mark.parametrize(
    ("mode", "profile", "says"),
    [
        ("RGB", P3[:200], "damaged"),
        ("RGB", b"not a profile", "damaged"),
        ("RGB", P3[:128] + bytes(len(P3) - 128), "damaged"),
        ("RGB", broken_white(), "damaged"),
        ("RGB", icc.grey_profile(icc.gamma(1.0)), "for GRAY, the image is RGB"),
        ("L", P3, "for RGB, the image is L"),
        ("RGB", icc.cmyk_profile(lab_of_swapped_inks), "for CMYK, the image is RGB"),
        ("RGB", icc.profile("link", "RGB ", "RGB ", {}), "of class link"),
    ],
)
def test_unsuitable_profiles_are_ignored(mode: str, profile: bytes, says: str) -> None:
    image = picture().convert(mode)
    decoded = decode(encode(image, "TIFF", icc_profile=profile))
    assert says in decoded.info[ICC_IGNORED]
    assert np.array_equal(decoded, image.convert("RGB"))


def test_an_incomplete_profile_keeps_the_image() -> None:
    content = encode(picture(), "JPEG", icc_profile=P3 + bytes(70_000))
    last = content.rindex(b"ICC_PROFILE\x00") - 4
    length = int.from_bytes(content[last + 2 : last + 4], "big")
    decoded = decode(content[:last] + content[last + 2 + length :])
    assert "incomplete" in decoded.info[ICC_IGNORED]
    assert np.array_equal(decoded, decode(encode(picture(), "JPEG")))
