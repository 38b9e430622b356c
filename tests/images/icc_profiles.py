"""Build ICC profiles (ICC.1:2001-04, version 2) for tests."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# CIE xy of red, green and blue; white is D65, except D50 for ProPhoto.
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
D65, D50 = (0.3127, 0.3290), (0.34567, 0.35850)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

Primaries = tuple[tuple[float, float], ...]
Curve = Callable[[NDArray[Any]], NDArray[Any]]  # stored value -> light, [0, 1]


def srgb_curve(values: NDArray[Any]) -> NDArray[Any]:
    """Return light of sRGB values (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_curve_inverse(light: NDArray[Any]) -> NDArray[Any]:
    """Return sRGB values of light."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def gamma(power: float) -> Curve:
    """Return a curve that is a pure power."""
    return lambda values: values**power


def to_xyz(primaries: Primaries, white: tuple[float, float] = D65) -> NDArray[np.float64]:
    """Return the matrix [3, 3] from linear RGB to XYZ, adapted to D50."""
    columns = np.array([_xyz(xy) for xy in primaries]).T
    source = _xyz(white)
    columns = columns * np.linalg.solve(columns, source)
    cones = np.diag((_BRADFORD @ _xyz(D50)) / (_BRADFORD @ source))
    adapted: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns
    return adapted


def rgb_profile(
    primaries: Primaries = SRGB,
    curve: Curve = srgb_curve,
    *,
    white: tuple[float, float] = D65,
    name: str = "made by hand",
) -> bytes:
    """Return a display profile of three primaries and one curve."""
    matrix = to_xyz(primaries, white)
    curves = {f"{channel}TRC": _curve(curve) for channel in "rgb"}
    colorants = {f"{channel}XYZ": _xyz_tag(matrix[:, i]) for i, channel in enumerate("rgb")}
    return profile("mntr", "RGB ", "XYZ ", {**colorants, **curves}, name)


def grey_profile(curve: Curve) -> bytes:
    """Return a display profile of grey levels."""
    return profile("mntr", "GRAY", "XYZ ", {"kTRC": _curve(curve)})


def cmyk_profile(lab_of: Callable[[NDArray[Any]], NDArray[Any]]) -> bytes:
    """Return a printer profile; `lab_of` gives the Lab of its corners, inks of 0 or 1 [16, 4]."""
    inks = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = lab_of(inks)
    corners = np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], -1)
    table = b"mft1" + struct.pack(">4x4B", 4, 3, 2, 0)
    table += struct.pack(">9i", *(np.eye(3, dtype=int).ravel() * 65536))
    ramp = bytes(range(256))
    table += ramp * 4 + np.rint(corners).clip(0, 255).astype(np.uint8).tobytes() + ramp * 3
    return profile("prtr", "CMYK", "Lab ", dict.fromkeys(("A2B0", "A2B1"), table))


def profile(
    kind: str, space: str, connection: str, tags: Mapping[str, bytes], name: str = "made by hand"
) -> bytes:
    """Return a profile of class `kind` for colour space `space`."""
    text = name.encode() + b"\x00"
    described = b"desc" + struct.pack(">4xI", len(text)) + text + bytes(78)
    tags = {"desc": described, "cprt": b"text\x00\x00\x00\x00CC0\x00", **tags}
    tags = {"wtpt": _xyz_tag(_xyz(D50)), **tags}
    place, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, content in tags.items():
        entries += struct.pack(">4sII", tag.encode(), place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = place + len(body)
    words = (kind.encode(), space.encode(), connection.encode())
    header = struct.pack(">I4sI4s4s4s12x4s", size, b"", 0x02400000, *words, b"acsp")
    header = header.ljust(68, b"\x00") + struct.pack(">3i", *_fixed(_xyz(D50)))
    return header.ljust(128, b"\x00") + struct.pack(">I", len(tags)) + entries + body


def _xyz(xy: tuple[float, float]) -> NDArray[np.float64]:
    x, y = xy
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(values: NDArray[Any]) -> list[int]:
    return [round(float(value) * 65536) for value in values]


def _xyz_tag(values: NDArray[Any]) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *_fixed(values))


def _curve(curve: Curve) -> bytes:
    levels = np.rint(curve(np.linspace(0, 1, 1024)) * 65535).astype(int)
    return b"curv" + struct.pack(">4xI1024H", 1024, *levels)
