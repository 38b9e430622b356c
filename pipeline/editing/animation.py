"""Write frames as an animated WebP, a GIF or an MP4, one frame in memory at a time.

Pillow keeps all frames of an animation in memory. Here it encodes each frame as a file of its own,
whose picture data are copied into the container of the animation. MP4 needs the extra `video`.

References: "WebP Container Specification" (Google), "GRAPHICS INTERCHANGE FORMAT, Version 89a".
"""

from __future__ import annotations

import io
import struct
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

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
    height, width = _checked(first, first.shape, path.suffix)
    count = 0
    with _ENCODERS[path.suffix](path, width, height, fps) as encoder:
        for frame in chain([first], frames):
            _checked(frame, first.shape, path.suffix)
            encoder.add(frame)
            count += 1
    return Written(count, width, height)


def _checked(frame: Pixels, shape: tuple[int, ...], suffix: str) -> tuple[int, int]:
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
    return height, width


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


class _Clock:
    """Durations in units of 1/`per_second` s, whose sum never drifts by more than half a unit."""

    def __init__(self, fps: int, per_second: int) -> None:
        self._fps, self._per_second, self._frames = fps, per_second, 0

    def next(self) -> int:
        """Return the duration of the next frame."""
        begin = round(self._frames * self._per_second / self._fps)
        self._frames += 1
        return round(self._frames * self._per_second / self._fps) - begin


class _Encoder(AbstractContextManager["_Encoder"]):
    """Encoder of one animation; frames are uint8 [h, w, 3]."""

    @abstractmethod
    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        """Open the file."""

    @abstractmethod
    def add(self, frame: Pixels) -> None:
        """Write the next frame."""


class _FileEncoder(_Encoder):
    """Encoder that writes the bytes of its container itself."""

    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        self.size = width, height
        self.fps = fps
        self.file: IO[bytes] = path.open("wb")
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Write what precedes the first frame."""

    @abstractmethod
    def finish(self) -> None:
        """Write what follows the last frame."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file:
            if kind is None:
                self.finish()


class _WebP(_FileEncoder):
    """RIFF file of a VP8X header, an ANIM chunk, and one ANMF chunk per frame."""

    def start(self) -> None:
        self._clock = _Clock(self.fps, 1000)
        self.file.write(b"RIFF\0\0\0\0WEBP")
        animated = 0x02
        self._chunk(b"VP8X", struct.pack("<B3x", animated) + self._canvas())
        self._chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0))  # white background, endless

    def add(self, frame: Pixels) -> None:
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "WEBP", quality=_WEBP_QUALITY)
        place = bytes(6)  # left and top
        replaces = 0x02  # the frame is not blended with the one before
        duration = _24_bits(self._clock.next())
        head = place + self._canvas() + duration + bytes([replaces])
        self._chunk(b"ANMF", head + sink.getvalue()[12:])  # without the file's own header

    def finish(self) -> None:
        size = self.file.tell() - 8
        if size >= 2**32:
            raise ConfigError("the animation is larger than a WebP file can be (4 GiB): use *.mp4")
        self.file.seek(4)
        self.file.write(struct.pack("<I", size))

    def _canvas(self) -> bytes:
        width, height = self.size
        return _24_bits(width - 1) + _24_bits(height - 1)

    def _chunk(self, name: bytes, content: bytes) -> None:
        self.file.write(name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2))


def _24_bits(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


class _Gif(_FileEncoder):
    """GIF without a global palette: each frame has its own 256 colours."""

    def start(self) -> None:
        self._clock = _Clock(self.fps, 100)
        self.file.write(b"GIF89a" + struct.pack("<HHBBB", *self.size, 0, 0, 0))
        self.file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # repeats endlessly

    def add(self, frame: Pixels) -> None:
        sink = io.BytesIO()
        Image.fromarray(frame).quantize(256).save(sink, "GIF", interlace=False)
        palette, bits, picture = _picture_of(sink.getvalue())
        keep_until_next = 1 << 2
        control = struct.pack("<BHBB", keep_until_next, self._clock.next(), 0, 0)
        self.file.write(b"\x21\xf9\x04" + control)
        own_palette = 0x80 | bits
        self.file.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, *self.size, own_palette))
        self.file.write(palette + picture)

    def finish(self) -> None:
        self.file.write(b"\x3b")


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


class _Mp4(_Encoder):
    """H.264 in MP4, by PyAV."""

    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        import av  # an extra

        with ExitStack() as stack:
            self._av: Any = av
            options = {"movflags": "faststart"}
            self._container: Any = stack.enter_context(av.open(str(path), "w", options=options))
            self._stream: Any = self._container.add_stream("h264", rate=fps, options=_H264)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            self._stack = stack.pop_all()

    def add(self, frame: Pixels) -> None:
        height, width = frame.shape[:2]
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._container.mux(self._stream.encode(None))


_ENCODERS: dict[str, type[_Encoder]] = {".webp": _WebP, ".gif": _Gif, ".mp4": _Mp4}
