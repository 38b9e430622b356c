"""Read PBM, PGM, PPM, PAM and PFM files.

Pillow's reader scales samples with a range other than 255 in Python, pixel by pixel (a minute for
16 megapixels), and reads neither PAM nor PFM with colours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.colour import scale_samples
from pipeline.images.rejects import Rejection, RejectReason

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_NUMBER = rb"(\d{1,9})"
_BITMAP = re.compile(rb"P([14])" + _SPACE + _NUMBER + _SPACE + _NUMBER + rb"[ \t\r\n\v\f]")
_PIXMAP = re.compile(rb"P([2356])" + (_SPACE + _NUMBER) * 3 + rb"[ \t\r\n\v\f]")
_FLOATMAP = re.compile(rb"P([Ff])" + (_SPACE + _NUMBER) * 2 + _SPACE + rb"([-+.\deE]{1,32})\s")
_CUT_HEADER = re.compile(rb"P[1-6Ff](?:[\s\d.+\-eE]|#[^\r\n]*(?:[\r\n]|\Z))*\Z")
_PAM_LINE = re.compile(rb"([A-Z]+)[ \t]+(\S+)[ \t]*\r?\n|#[^\n]*\n|\s*\n|ENDHDR[ \t]*\r?\n")
_MAX_HEADER_LINES = 100
_MAX_HEADER_BYTES = 1 << 16
_CHANNELS = {b"1": 1, b"2": 1, b"3": 3, b"4": 1, b"5": 1, b"6": 3, b"F": 3, b"f": 1}


@dataclass(frozen=True)
class NetpbmHeader:
    """Header: layout of the raster that begins at `start`."""

    kind: bytes  # the magic's second character
    size: tuple[int, int]  # width, height
    channels: int
    maxval: float  # of floats only the sign counts: negative is little-endian
    start: int


def read_header(content: bytes) -> NetpbmHeader:
    """Return the header of a Netpbm file; raises `Rejection` if it is damaged."""
    if content.startswith(b"P7"):
        return _pam_header(content)
    patterns = (_BITMAP, _PIXMAP, _FLOATMAP)
    matches = (pattern.match(content, 0, _MAX_HEADER_BYTES) for pattern in patterns)
    match = next((match for match in matches if match), None)
    if match is None and len(content) < _MAX_HEADER_BYTES and _CUT_HEADER.match(content):
        raise _ends_early(content)
    if match is None:
        raise _header_is_damaged()
    kind, width, height, *last = match.groups()
    maxval = float(last[0]) if last else 1.0
    return _check_maxval(
        NetpbmHeader(kind, (int(width), int(height)), _CHANNELS[kind], maxval, match.end())
    )


def read_pixels(content: bytes, header: NetpbmHeader) -> Image.Image:
    """Return the pixels as L, LA, RGB or RGBA, scaled from the header's range to [0, 255].

    Raises `Rejection` if they end early (`truncated`) or are damaged.
    """
    samples = _samples(content, header)
    if header.kind not in b"Ff" and header.maxval not in (255, 65535):
        if int(samples.max()) > header.maxval:
            raise Rejection(
                RejectReason.UNDECODABLE,
                f"PNM cannot be decoded (a sample of {samples.max()}, over {header.maxval:g})",
            )
        # A table of at most 65536 levels is faster than arithmetic on each sample.
        levels = np.arange(int(header.maxval) + 1) * (255.0 / header.maxval)
        pixels = np.rint(levels).astype(np.uint8)[samples]
    else:
        pixels = samples if samples.dtype == np.uint8 else scale_samples(samples)
    return Image.fromarray(pixels[..., 0] if header.channels == 1 else pixels)


def _check_maxval(header: NetpbmHeader) -> NetpbmHeader:
    is_float = header.kind in b"Ff"
    is_valid_float = np.isfinite(header.maxval) and header.maxval != 0
    if not (is_valid_float if is_float else 0 < header.maxval < 65536):
        raise Rejection(
            RejectReason.UNDECODABLE, f"PNM cannot be decoded (samples up to {header.maxval:g})"
        )
    return header


def _pam_header(content: bytes) -> NetpbmHeader:
    fields: dict[bytes, bytes] = {}
    place = content.find(b"\n") + 1
    for _ in range(_MAX_HEADER_LINES):
        line = _PAM_LINE.match(content, place)
        if line is None:
            break
        place = line.end()
        if line[0].startswith(b"ENDHDR"):
            return _from_fields(fields, place)
        if line[1]:
            fields[line[1]] = line[2]
    raise _header_is_damaged() if b"\n" in content[place:] else _ends_early(content)


def _from_fields(fields: dict[bytes, bytes], start: int) -> NetpbmHeader:
    names = (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
    values = [fields.get(name, b"") for name in names]
    if not all(value.isdigit() and len(value) < 10 for value in values):
        raise _header_is_damaged()
    width, height, channels, maxval = map(int, values)
    if not 1 <= channels <= 4:
        raise Rejection(
            RejectReason.UNSUPPORTED_FORMAT,
            f"PAM with {channels} channels: 1 to 4 are read, convert it to PNG first",
        )
    return _check_maxval(NetpbmHeader(b"7", (width, height), channels, maxval, start))


def _samples(content: bytes, header: NetpbmHeader) -> NDArray[Any]:
    """Return samples [height, width, channels] as uint8, uint16 or float32."""
    width, height = header.size
    shape = (height, width, header.channels)
    if header.kind in b"123":
        return _plain_samples(content, header).reshape(shape)
    if header.kind == b"4":
        packed = _read_raster(content, header, np.dtype(np.uint8), height * ((width + 7) // 8))
        bits = np.unpackbits(packed.reshape(height, -1), axis=1, count=width)
        return (1 - bits).reshape(shape)
    count = height * width * header.channels
    if header.kind in b"Ff":
        order = "<f4" if header.maxval < 0 else ">f4"
        return _read_raster(content, header, np.dtype(order), count).reshape(shape)[
            ::-1
        ]  # bottom up
    size = np.dtype(">u2" if header.maxval > 255 else "u1")
    return _read_raster(content, header, size, count).reshape(shape)


def _read_raster(
    content: bytes, header: NetpbmHeader, kind: np.dtype[Any], count: int
) -> NDArray[Any]:
    if (len(content) - header.start) // kind.itemsize < count:
        raise _ends_early(content)
    return np.frombuffer(content, kind, count, header.start)


def _plain_samples(content: bytes, header: NetpbmHeader) -> NDArray[Any]:
    """Return samples in decimal digits; those of a bitmap may have no spaces in between."""
    width, height = header.size
    count = width * height * header.channels
    # Each sample takes a digit and a space: check before memory is allocated.
    if len(content) - header.start + 1 < count * (1 if header.kind == b"1" else 2):
        raise _ends_early(content)
    text = re.sub(rb"#[^\r\n]*", b"", content[header.start :])
    if header.kind == b"1":
        digits = np.frombuffer(b"".join(text.split()), np.uint8)[:count]
        values = (ord("1") - digits.astype(np.int64)) if len(digits) else digits
    else:
        values = np.fromstring(text, np.int64, count=-1, sep=" ")[:count]
    if len(values) < count:
        raise _ends_early(content)
    if values.min() < 0 or values.max() > header.maxval:
        raise Rejection(RejectReason.UNDECODABLE, "PNM cannot be decoded (a sample out of range)")
    return values.astype(np.uint8 if header.maxval < 256 else np.uint16)


def _header_is_damaged() -> Rejection:
    return Rejection(RejectReason.UNDECODABLE, "PNM cannot be decoded (its header is damaged)")


def _ends_early(content: bytes) -> Rejection:
    return Rejection(RejectReason.TRUNCATED, f"PNM of {len(content)} bytes ends early")
