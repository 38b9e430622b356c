"""TIFF and BigTIFF: their directory, camera raw files, and pixels that Pillow has no mode for.

Only the layout of the samples is read here. The bytes of compressed strips are unpacked by libtiff,
through Pillow: a strip is shown to it as a grey image of 8 bits whose rows are as many pixels wide
as they have bytes. Memory: 4 bytes a sample, and one band of strips.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.images import tiff
from pipeline.images.colour import scale_samples
from pipeline.images.rejects import Rejection, RejectReason

Tags: TypeAlias = Mapping[int, tuple[int, ...]]

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP = 266, 273, 274, 277, 278
STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 279, 284, 317, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 330, 338, 339
PROFILE, DNG_VERSION = 34675, 50706

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
_MOST_ENTRIES = 4096
_REDUCED = 1  # bit of NEW_SUBFILE_TYPE: a preview of another image of the file


def byte_order(content: bytes) -> str:
    """The byte order of `content` as `struct` has it."""
    return "<" if content[:2] == b"II" else ">"


def read_tags(content: bytes) -> dict[int, tuple[int, ...]]:
    """The integer tags of the first directory; those whose values lie outside are left out."""
    order, is_big = byte_order(content), content[2:4] in (b"+\x00", b"\x00+")
    offset, count = ("Q", "Q") if is_big else ("I", "H")
    entry = struct.Struct(f"{order}HH{offset}")
    width = struct.calcsize(offset)
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (start,) = struct.unpack_from(f"{order}{offset}", content, 8 if is_big else 4)
        (entries,) = struct.unpack_from(f"{order}{count}", content, start)
        start += struct.calcsize(count)
        for index in range(min(entries, _MOST_ENTRIES)):
            place = start + index * (entry.size + width)
            tag, kind, values = entry.unpack_from(content, place)
            code, place = _TYPES.get(kind, ""), place + entry.size
            size = values * struct.calcsize(f"={code}")
            if size > width:
                (place,) = struct.unpack_from(f"{order}{offset}", content, place)
            if code and place + size <= len(content):
                tags[tag] = struct.unpack_from(f"{order}{values}{code}", content, place)
    except struct.error:  # the directory is cut: what it held so far
        pass
    return tags


def is_camera_raw(content: bytes, tags: Tags) -> bool:
    """Whether the first image is the preview of sensor data (DNG, NEF, ARW, CR2, ...)."""
    kind = tags.get(NEW_SUBFILE_TYPE) or (0,)
    is_preview = bool(kind[0] & _REDUCED) and (DNG_VERSION in tags or SUB_DIRECTORIES in tags)
    return is_preview or content[8:10] == b"CR"


_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
_COMPRESSIONS = (_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD)
_UNPREDICTED = (_NONE, _PACKBITS)  # libtiff takes no predictor with these
_KINDS = {1: "u", 2: "i", 3: "f"}  # SampleFormat
_BITS = {"u": (8, 16, 32), "i": (8, 16, 32), "f": (16, 32, 64)}
_PLAIN, _HORIZONTAL, _FLOATING = 1, 2, 3  # predictors
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED, _UNASSOCIATED = 1, 2  # alpha, multiplied into the colours or not
_MOST_SAMPLES = 16
_BAND_BYTES = 16 << 20
_MOST_STRIP_BYTES = 512 << 20  # unpacked; a strip is unpacked whole


@dataclass(frozen=True)
class Layout:
    """How the samples of an image lie in its file."""

    size: tuple[int, int]  # width, height, as stored
    kind: np.dtype[Any]  # of a sample, in the file's byte order
    samples: int  # a pixel
    colours: int  # of them, 1 or 3; behind them alpha, where there is any
    alpha: int  # 0, or the kind of alpha
    is_planar: bool  # a plane for each sample
    white_is_zero: bool
    compression: int
    predictor: int
    chunk: tuple[int, int]  # width, height of a strip or tile
    offsets: Sequence[int]
    counts: Sequence[int]

    @property
    def chunk_row_bytes(self) -> int:
        """Bytes of a row of a strip or tile."""
        return self.chunk[0] * self.kind.itemsize * (1 if self.is_planar else self.samples)


def pillow_misreads(content: bytes, tags: tiff.Tags) -> bool:
    """Whether Pillow opens a TIFF and makes of it other pixels than it holds.

    It shows samples of more than 8 bits whose zero is white as a negative. Of separate planes it
    knows those of RGB with 8 bits: the alpha of grey is lost, and planes that are not compressed
    are read by one letter of their layout's name (of `RGB;16L` or `L;I`). Compressed floats and
    signed integers it takes to be in the file's byte order, where libtiff gives the machine's.
    """
    one = {name: values[0] for name, values in tags.items() if values}
    bits, photometric = one.get(tiff.BITS, 1), one.get(tiff.PHOTOMETRIC, -1)
    compression = one.get(tiff.COMPRESSION, _NONE)
    if bits < 8 or compression not in _COMPRESSIONS:
        return False
    is_signed = one.get(tiff.SAMPLE_FORMAT, 1) != 1
    is_swapped = is_signed and tiff.byte_order(content) == ">" and compression != _NONE
    if bits > 8 and (photometric == _WHITE_IS_ZERO or is_swapped):
        return True
    is_grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    is_raw = compression == _NONE and (bits > 8 or tiff.EXTRA_SAMPLES in tags)
    return one.get(tiff.PLANAR, 1) == 2 and (is_grey or is_raw)


def read_layout(content: bytes, tags: tiff.Tags) -> Layout:
    """How the samples lie; raises `ValueError` where that is not read."""
    one = {name: values[0] for name, values in tags.items() if values}
    width, height = one.get(tiff.WIDTH, 0), one.get(tiff.HEIGHT, 0)
    samples = one.get(tiff.SAMPLES, 1)
    photometric = one.get(tiff.PHOTOMETRIC, -1)
    compression = one.get(tiff.COMPRESSION, _NONE)
    predictor = one.get(tiff.PREDICTOR, _PLAIN) if compression not in _UNPREDICTED else _PLAIN
    kind = _KINDS.get(one.get(tiff.SAMPLE_FORMAT, 1), "")
    bits = set(tags.get(tiff.BITS, (1,)))
    colours = 3 if photometric == _RGB or samples == 3 else 1
    if (
        len(bits) != 1
        or bits.isdisjoint(_BITS.get(kind, ()))
        or len(set(tags.get(tiff.SAMPLE_FORMAT, (1,)))) != 1
        or not colours <= samples <= _MOST_SAMPLES
        or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        or compression not in _COMPRESSIONS
        or predictor not in (_PLAIN, _HORIZONTAL, _FLOATING)
        or (predictor == _FLOATING and kind != "f")
        or one.get(tiff.FILL_ORDER, 1) != 1
        or min(width, height) < 1
    ):
        raise _not_read(one, bits)
    extra = one.get(tiff.EXTRA_SAMPLES, 0) if samples > colours else 0
    chunk, offsets, counts = _chunks(tags, one, (width, height))
    order = tiff.byte_order(content)
    return Layout(
        size=(width, height),
        kind=np.dtype(f"{order}{kind}{bits.pop() // 8}"),
        samples=samples,
        colours=colours,
        alpha=extra if extra in (_ASSOCIATED, _UNASSOCIATED) else 0,
        is_planar=one.get(tiff.PLANAR, 1) == 2 and samples > 1,
        white_is_zero=photometric == _WHITE_IS_ZERO,
        compression=compression,
        predictor=predictor,
        chunk=chunk,
        offsets=offsets,
        counts=counts,
    )


def read_pixels(content: bytes, layout: Layout) -> Image.Image:
    """The pixels, 8 bits a channel: L, LA, RGB, RGBA, or RGBa where alpha is multiplied in.

    Raises `ValueError` where the file is damaged, and `Rejection`: `truncated`, `too_large` (a
    strip), `not_finite`, and `unsupported_format` where the samples' range is not known.
    """
    _check_chunks(content, layout)
    values = _read_samples(content, layout)
    scaled = scale_samples(values[..., : layout.colours])
    if layout.white_is_zero:
        scaled = 255 - scaled
    if not layout.alpha:
        return Image.fromarray(scaled if layout.colours == 3 else scaled[..., 0])
    alpha = scale_samples(values[..., layout.colours :])
    if layout.colours == 1:
        scaled = np.repeat(scaled, 3, axis=2)
    image = Image.fromarray(np.concatenate([scaled, alpha], axis=2))
    if layout.alpha == _UNASSOCIATED:
        return image
    return Image.frombytes("RGBa", image.size, image.tobytes())


def _not_read(one: dict[int, int], bits: set[int]) -> ValueError:
    names = {1: "integer", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
    kind = names.get(one.get(tiff.SAMPLE_FORMAT, 1), "unknown")
    said = (
        f"{one.get(tiff.SAMPLES, 1)} {kind} samples",
        f"of {'/'.join(map(str, sorted(bits)[:4]))} bits",
        f"photometric {one.get(tiff.PHOTOMETRIC, 'not given')}",
        f"compression {one.get(tiff.COMPRESSION, 1)}",
    )
    return ValueError(f"its pixels are {', '.join(said)}: convert it to 8 or 16 bit RGB")


def _chunks(
    tags: tiff.Tags, one: dict[int, int], size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    """Width and height of a strip or tile, their offsets and byte counts."""
    if tiff.TILE_OFFSETS in tags:
        chunk = one.get(tiff.TILE_WIDTH, 0), one.get(tiff.TILE_HEIGHT, 0)
        places = tags[tiff.TILE_OFFSETS], tags.get(tiff.TILE_COUNTS, ())
    else:
        chunk = size[0], min(size[1], one.get(tiff.ROWS_PER_STRIP, size[1]))
        places = tags.get(tiff.STRIP_OFFSETS, ()), tags.get(tiff.STRIP_COUNTS, ())
    return chunk, *places


def _check_chunks(content: bytes, layout: Layout) -> None:
    """See that the strips or tiles are all there, before memory is taken for what they hold."""
    (width, height), (across, down) = layout.size, layout.chunk
    if across < 1 or down < 1 or across > width + 65536 or down > height + 65536:
        raise ValueError("its strips or tiles have no size")
    planes = layout.samples if layout.is_planar else 1
    needed = -(-width // across) * -(-height // down) * planes
    if min(len(layout.offsets), len(layout.counts)) < needed:
        raise ValueError("strips or tiles are missing")
    ends = (start + count for start, count in zip(layout.offsets, layout.counts, strict=False))
    if any(end > len(content) for end in ends):
        raise Rejection(
            RejectReason.TRUNCATED, f"TIFF of {len(content)} bytes ends before its pixels do"
        )
    if down * layout.chunk_row_bytes > _MOST_STRIP_BYTES and layout.compression != _NONE:
        raise Rejection(
            RejectReason.TOO_LARGE,
            f"a strip unpacks to {down * layout.chunk_row_bytes >> 20} MiB, the limit is "
            f"{_MOST_STRIP_BYTES >> 20}: write it with fewer rows a strip",
        )


def _read_samples(content: bytes, layout: Layout) -> NDArray[Any]:
    """[height, width, colours (+ 1 with alpha)] in native byte order; floats as float32."""
    width, height = layout.size
    kept = layout.colours + bool(layout.alpha)
    kind = np.dtype(np.float32) if layout.kind.kind == "f" else layout.kind.newbyteorder("=")
    found = np.empty((height, width, kept), kind)
    across, down = layout.chunk
    columns, rows = -(-width // across), -(-height // down)
    planes = range(kept) if layout.is_planar else (0,)
    for plane in planes:
        for column in range(columns):
            left, right = column * across, min(width, (column + 1) * across)
            chunks = [(plane * rows + row) * columns + column for row in range(rows)]
            for first, band in _bands(content, layout, chunks):
                top, bottom = first * down, min(height, first * down + len(band))
                part = band[: bottom - top, : right - left]
                if layout.is_planar:
                    found[top:bottom, left:right, plane] = part[..., 0]
                else:
                    found[top:bottom, left:right] = part[..., :kept]
    return found


def _bands(content: bytes, layout: Layout, chunks: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Bands of several strips, or of tiles below each other, and which of them each begins with."""
    down = layout.chunk[1]
    each = max(1, _BAND_BYTES // (down * layout.chunk_row_bytes))
    for first in range(0, len(chunks), each):
        group = chunks[first : first + each]
        # The last strip holds the rows that are left; a tile is always whole.
        missing = (first + len(group)) * down - layout.size[1]
        is_strip = layout.chunk[0] == layout.size[0]
        height = len(group) * down - (max(0, missing) if is_strip else 0)
        raw = _unpacked(content, layout, group, height)
        yield first, _unpredicted(raw, layout)


def _unpacked(content: bytes, layout: Layout, group: list[int], height: int) -> NDArray[np.uint8]:
    """[height, bytes a row] of the strips or tiles of `group`."""
    width = layout.chunk_row_bytes
    packed = [
        content[layout.offsets[index] : layout.offsets[index] + layout.counts[index]]
        for index in group
    ]
    if layout.compression == _NONE:
        full = layout.chunk[1] * width
        whole = b"".join(strip[:full] for strip in packed)
        if len(whole) < height * width:
            raise ValueError("a strip is shorter than its rows")
        return np.frombuffer(whole, np.uint8, height * width).reshape(height, width)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(_grey_tiff(packed, layout, height)), "") as grey:
        return np.asarray(grey).reshape(height, width)


def _grey_tiff(packed: list[bytes], layout: Layout, height: int) -> bytes:
    """A TIFF of one channel of 8 bits around strips that are packed as in `layout`."""
    offsets = list(itertools.accumulate(map(len, packed), initial=8))
    start = offsets.pop()
    entries = {
        tiff.WIDTH: (layout.chunk_row_bytes,),
        tiff.HEIGHT: (height,),
        tiff.BITS: (8,),
        tiff.COMPRESSION: (layout.compression,),
        tiff.PHOTOMETRIC: (_BLACK_IS_ZERO,),
        tiff.STRIP_OFFSETS: tuple(offsets),
        tiff.SAMPLES: (1,),
        tiff.ROWS_PER_STRIP: (layout.chunk[1],),
        tiff.STRIP_COUNTS: tuple(map(len, packed)),
    }
    values_at = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, listed in entries.items():
        place = listed[0] if len(listed) == 1 else values_at + len(values)
        directory += struct.pack("<HHII", tag, 4, len(listed), place)
        if len(listed) > 1:
            values += struct.pack(f"<{len(listed)}I", *listed)
    header = struct.pack("<2sHI", b"II", 42, start)
    return b"".join([header, *packed, directory, bytes(4), values])


def _unpredicted(raw: NDArray[np.uint8], layout: Layout) -> NDArray[Any]:
    """[height, width, samples] from the bytes of rows, the differences between pixels summed up."""
    samples = 1 if layout.is_planar else layout.samples
    height, size = len(raw), layout.kind.itemsize
    if layout.predictor == _FLOATING:
        # Adobe Photoshop TIFF technical note 3: byte planes, the highest first, differences of
        # bytes that are as far apart as the samples of a pixel.
        steps = raw.reshape(height, -1, samples)
        planes = np.add.accumulate(steps, axis=1, dtype=np.uint8).reshape(height, size, -1)
        values = planes.transpose(0, 2, 1).copy().view(f">f{size}")
        return values.reshape(height, -1, samples)
    if layout.predictor == _HORIZONTAL:
        unsigned = np.dtype(f"u{size}")
        stored = raw.reshape(-1).view(unsigned.newbyteorder(layout.kind.byteorder))
        steps = stored.reshape(height, -1, samples)
        summed = np.add.accumulate(steps, axis=1, dtype=unsigned)
        return summed.view(layout.kind.newbyteorder("="))
    return raw.reshape(-1).view(layout.kind).reshape(height, -1, samples)
