"""Write frames as an animated WebP, a GIF or an MP4, one frame in memory at a time.

Pillow keeps all frames of an animation in memory. Here it encodes each frame as a file of its own,
whose picture data are copied into the container of the animation. MP4 needs the extra `video`.

References: "WebP Container Specification" (Google), "GRAPHICS INTERCHANGE FORMAT, Version 89a".
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, RequestError, ShapeError
from pipeline.storage import file_place

Pixels = NDArray[np.uint8]

SUFFIXES = (".webp", ".gif", ".mp4")
FPS = 25
MAX_FPS = 50  # of GIF: viewers slow down frames of less than 2/100 s
_MAX_SIDE = {".webp": 16383, ".gif": 65535, ".mp4": 16384}
_WEBP_QUALITY = 90
_H264 = {"crf": "17", "preset": "medium"}


class Written(NamedTuple):
    """Number of frames of an animation, and their size in pixels."""

    frames: int
    width: int
    height: int


def check_animation(uri: str, fps: int = FPS) -> None:
    """Raise `RequestError` unless an animation can be written under this name.

    The name must end in `.webp`, `.gif` or `.mp4`; the last needs PyAV.
    """
    suffix = _suffix(uri)
    if suffix not in SUFFIXES:
        raise ConfigError(f"'{uri}': name an animation *.webp, *.gif or *.mp4")
    if suffix == ".mp4" and find_spec("av") is None:
        raise RequestError(
            f"'{uri}': MP4 needs PyAV: pip install 'restyle-pipeline[video]', or name it *.webp"
        )
    if not 1 <= fps <= MAX_FPS:
        raise ConfigError(f"an animation has 1 to {MAX_FPS} frames per second, got {fps}")


def write_animation(uri: str, frames: Iterable[Pixels], fps: int = FPS) -> Written:
    """Encode `frames`, uint8 [h, w, 3] of one size, and write them to the path or URI `uri`.

    WebP and GIF repeat endlessly. The file is encoded on the local disk and then stored whole: a
    failure leaves none. MP4 is H.264 with 4:2:0 colour, which has even sides: an odd frame repeats
    its last row or column. Raises `ConfigError` for no frames and `ShapeError` for unequal ones.
    """
    check_animation(uri, fps)
    store, name = file_place(uri)
    with tempfile.TemporaryDirectory(prefix="restyle-animation-") as temporary:
        path = Path(temporary) / f"animation{_suffix(uri)}"
        written = _encode(path, iter(frames), fps)
        store.put(name, path)
    return written


def _encode(path: Path, frames: Iterator[Pixels], fps: int) -> Written:
    first = next(frames, None)
    if first is None:
        raise ConfigError("an animation needs at least one frame")
    height, width = _checked(first, first.shape, path.suffix).shape[:2]
    encoded = 0

    def checked() -> Iterator[Pixels]:
        nonlocal encoded
        for frame in chain([first], frames):
            encoded += 1
            yield _checked(frame, first.shape, path.suffix)

    _ENCODERS[path.suffix](path, checked(), (width, height), fps)
    return Written(encoded, width, height)


def _checked(frame: Pixels, shape: tuple[int, ...], suffix: str) -> Pixels:
    if frame.dtype != np.uint8 or frame.shape != shape or frame.ndim != 3 or shape[-1] != 3:
        raise ShapeError(
            f"frames must be uint8 [h, w, 3] of one size, got {frame.dtype} {list(frame.shape)} "
            f"after {list(shape)}"
        )
    height, width = shape[:2]
    if max(height, width) > _MAX_SIDE[suffix]:
        raise ConfigError(
            f"frames of {width}×{height} pixels are too large for {suffix}, which has at most "
            f"{_MAX_SIDE[suffix]} a side: choose a smaller --size"
        )
    return frame


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def _durations(fps: int, per_second: int) -> Iterator[int]:
    """Yield durations in units of 1/`per_second` s, whose sum never drifts by over half a unit."""
    for frame in count():
        begin = round(frame * per_second / fps)
        yield round((frame + 1) * per_second / fps) - begin


def _write_webp(path: Path, frames: Iterator[Pixels], size: tuple[int, int], fps: int) -> None:
    """Write a RIFF file of a VP8X header, an ANIM chunk, and one ANMF chunk per frame."""
    canvas = _24_bits(size[0] - 1) + _24_bits(size[1] - 1)
    animated = 0x02
    place = bytes(6)  # left and top
    replaces = 0x02  # the frame is not blended with the one before
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.write(_chunk(b"VP8X", struct.pack("<B3x", animated) + canvas))
        file.write(_chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0)))  # white, endless
        for frame, duration in zip(frames, _durations(fps, 1000), strict=False):
            sink = io.BytesIO()
            Image.fromarray(frame).save(sink, "WEBP", quality=_WEBP_QUALITY)
            head = place + canvas + _24_bits(duration) + bytes([replaces])
            file.write(_chunk(b"ANMF", head + sink.getvalue()[12:]))  # without the file's header
        length = file.tell() - 8
        if length >= 2**32:
            raise ConfigError("the animation is larger than a WebP file can be (4 GiB): use *.mp4")
        file.seek(4)
        file.write(struct.pack("<I", length))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _24_bits(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


def _write_gif(path: Path, frames: Iterator[Pixels], size: tuple[int, int], fps: int) -> None:
    """Write a GIF without a global palette: each frame has its own 256 colours."""
    keep_until_next = 1 << 2
    with path.open("wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0))
        file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # repeats endlessly
        for frame, duration in zip(frames, _durations(fps, 100), strict=False):
            sink = io.BytesIO()
            Image.fromarray(frame).quantize(256).save(sink, "GIF", interlace=False)
            palette, bits, picture = _picture_of(sink.getvalue())
            file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", keep_until_next, duration, 0, 0))
            own_palette = 0x80 | bits
            file.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, *size, own_palette))
            file.write(palette + picture)
        file.write(b"\x3b")


def _picture_of(gif: bytes) -> tuple[bytes, int, bytes]:
    """Return palette, the code of its size, and the compressed pixels of a GIF of one frame."""
    flags = gif[10]
    bits = flags & 7
    start = 13 + (3 << (bits + 1) if flags & 0x80 else 0)
    palette = gif[13:start]
    while gif[start] == 0x21:  # an extension: blocks that each begin with their length
        start = _end_of_blocks(gif, start + 2)
    descriptor = gif[start : start + 10]
    start += 10
    if descriptor[9] & 0x80:
        bits = descriptor[9] & 7
        palette, start = gif[start : start + (3 << (bits + 1))], start + (3 << (bits + 1))
    return palette, bits, gif[start : _end_of_blocks(gif, start + 1)]


def _end_of_blocks(gif: bytes, start: int) -> int:
    while gif[start]:
        start += gif[start] + 1
    return start + 1


def _write_mp4(path: Path, frames: Iterator[Pixels], size: tuple[int, int], fps: int) -> None:
    """Write H.264 in MP4, by PyAV."""
    import av  # an extra

    odd_rows, odd_columns = size[1] % 2, size[0] % 2
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("h264", rate=fps, options=_H264)
        stream.width, stream.height = size[0] + odd_columns, size[1] + odd_rows
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.pad(frame, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


_ENCODERS = {".webp": _write_webp, ".gif": _write_gif, ".mp4": _write_mp4}
