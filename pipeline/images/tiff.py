"""Read TIFF and BigTIFF: directory, camera raw files, and samples that fit no mode of Pillow.

This module reads the layout of the samples; libtiff decompresses the strips, through Pillow. To do
so, strips are wrapped in a grey 8-bit TIFF with one pixel per byte. Memory: 4 bytes per sample, and
one band of strips.
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

from pipeline.images.colour import scale_samples
from pipeline.images.rejects import Rejection, RejectReason

Tags: TypeAlias = Mapping[int, tuple[int, ...]]

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP = 266, 273, 274, 277, 278
STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 279, 284, 317, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 330, 338, 339
PROFILE, DNG_VERSION = 34675, 50706

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
_MAX_ENTRIES = 4096
_REDUCED = 1  # bit of NEW_SUBFILE_TYPE: a preview of another image in the file


def byte_order(content: bytes) -> str:
    """Return the byte order of `content` as a `struct` prefix, `<` or `>`."""
    return "<" if content[:2] == b"II" else ">"


def read_tags(content: bytes) -> dict[int, tuple[int, ...]]:
    """Return the integer tags of the first directory, except those with values outside the file."""
    order, is_big = byte_order(content), content[2:4] in (b"+\x00", b"\x00+")
    offset, count = ("Q", "Q") if is_big else ("I", "H")
    entry = struct.Struct(f"{order}HH{offset}")
    width = struct.calcsize(offset)
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (start,) = struct.unpack_from(f"{order}{offset}", content, 8 if is_big else 4)
        (entries,) = struct.unpack_from(f"{order}{count}", content, start)
        start += struct.calcsize(count)
        for index in range(min(entries, _MAX_ENTRIES)):
            place = start + index * (entry.size + width)
            tag, kind, values = entry.unpack_from(content, place)
            code, place = _TYPES.get(kind, ""), place + entry.size
            size = values * struct.calcsize(f"={code}")
            if size > width:
                (place,) = struct.unpack_from(f"{order}{offset}", content, place)
            if code and place + size <= len(content):
                tags[tag] = struct.unpack_from(f"{order}{values}{code}", content, place)
    except struct.error:  # the directory is truncated: keep the tags so far
        pass
    return tags


def is_camera_raw(content: bytes, tags: Tags) -> bool:
    """Return whether the first image is a preview of sensor data (DNG, NEF, ARW, CR2, ...)."""
    kind = tags.get(NEW_SUBFILE_TYPE) or (0,)
    is_preview = bool(kind[0] & _REDUCED) and (DNG_VERSION in tags or SUB_DIRECTORIES in tags)
    return is_preview or content[8:10] == b"CR"


_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
_COMPRESSIONS = (_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD)
_UNPREDICTED = (_NONE, _PACKBITS)  # libtiff supports no predictor with these
_KINDS = {1: "u", 2: "i", 3: "f"}  # SampleFormat
_BITS = {"u": (8, 16, 32), "i": (8, 16, 32), "f": (16, 32, 64)}
_PLAIN, _HORIZONTAL, _FLOATING = 1, 2, 3  # predictors
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED, _UNASSOCIATED = 1, 2  # alpha: colours are multiplied by it, or not
_MAX_SAMPLES = 16
_BAND_BYTES = 16 << 20
_MAX_STRIP_BYTES = 512 << 20  # decompressed; a strip is decompressed as a whole


@dataclass(frozen=True)
class Layout:
    """Layout of the samples of an image in its file."""

    size: tuple[int, int]  # width, height, as stored
    kind: np.dtype[Any]  # of a sample, in the file's byte order
    samples: int  # per pixel
    colours: int  # colour samples, 1 or 3; alpha follows, if any
    alpha: int  # 0, or the kind of alpha
    is_planar: bool  # one plane per sample
    white_is_zero: bool
    compression: int
    predictor: int
    chunk: tuple[int, int]  # width, height of a strip or tile
    offsets: Sequence[int]
    counts: Sequence[int]

    @property
    def chunk_row_bytes(self) -> int:
        """Bytes per row of a strip or tile."""
        return self.chunk[0] * self.kind.itemsize * (1 if self.is_planar else self.samples)


def pillow_misreads(content: bytes, tags: Tags) -> bool:
    """Return whether Pillow would open a TIFF but return wrong pixels.

    Cases: more than 8 bits with white as zero (read as a negative); separate planes of grey with
    alpha (alpha is lost); uncompressed separate planes of other than 8-bit RGB (wrong raw mode);
    compressed floats and signed integers of the other byte order (libtiff returns native order,
    Pillow expects the file's).
    """
    first = {name: values[0] for name, values in tags.items() if values}
    bits, photometric = first.get(BITS, 1), first.get(PHOTOMETRIC, -1)
    compression = first.get(COMPRESSION, _NONE)
    if bits < 8 or compression not in _COMPRESSIONS:
        return False
    is_signed = first.get(SAMPLE_FORMAT, 1) != 1
    is_swapped = is_signed and byte_order(content) == ">" and compression != _NONE
    if bits > 8 and (photometric == _WHITE_IS_ZERO or is_swapped):
        return True
    is_grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    is_raw = compression == _NONE and (bits > 8 or EXTRA_SAMPLES in tags)
    return first.get(PLANAR, 1) == 2 and (is_grey or is_raw)


def read_layout(content: bytes, tags: Tags) -> Layout:
    """Return the layout of the samples; raises `ValueError` if it is not supported."""
    first = {name: values[0] for name, values in tags.items() if values}
    width, height = first.get(WIDTH, 0), first.get(HEIGHT, 0)
    samples = first.get(SAMPLES, 1)
    photometric = first.get(PHOTOMETRIC, -1)
    compression = first.get(COMPRESSION, _NONE)
    predictor = first.get(PREDICTOR, _PLAIN) if compression not in _UNPREDICTED else _PLAIN
    kind = _KINDS.get(first.get(SAMPLE_FORMAT, 1), "")
    bits = set(tags.get(BITS, (1,)))
    colours = 3 if photometric == _RGB or samples == 3 else 1
    if (
        len(bits) != 1
        or bits.isdisjoint(_BITS.get(kind, ()))
        or len(set(tags.get(SAMPLE_FORMAT, (1,)))) != 1
        or not colours <= samples <= _MAX_SAMPLES
        or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        or compression not in _COMPRESSIONS
        or predictor not in (_PLAIN, _HORIZONTAL, _FLOATING)
        or (predictor == _FLOATING and kind != "f")
        or first.get(FILL_ORDER, 1) != 1
        or min(width, height) < 1
    ):
        raise _unsupported(first, bits)
    extra = first.get(EXTRA_SAMPLES, 0) if samples > colours else 0
    chunk, offsets, counts = _chunks(tags, first, (width, height))
    order = byte_order(content)
    return Layout(
        size=(width, height),
        kind=np.dtype(f"{order}{kind}{bits.pop() // 8}"),
        samples=samples,
        colours=colours,
        alpha=extra if extra in (_ASSOCIATED, _UNASSOCIATED) else 0,
        is_planar=first.get(PLANAR, 1) == 2 and samples > 1,
        white_is_zero=photometric == _WHITE_IS_ZERO,
        compression=compression,
        predictor=predictor,
        chunk=chunk,
        offsets=offsets,
        counts=counts,
    )


def read_pixels(content: bytes, layout: Layout) -> Image.Image:
    """Return the pixels with 8 bits per channel: L, LA, RGB, RGBA, or RGBa (premultiplied alpha).

    Raises `ValueError` if the file is damaged, and `Rejection`: `truncated`, `too_large` (a strip),
    `not_finite`, or `unsupported_format` for samples of unknown range.
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


def _unsupported(first: dict[int, int], bits: set[int]) -> ValueError:
    names = {1: "integer", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
    kind = names.get(first.get(SAMPLE_FORMAT, 1), "unknown")
    parts = (
        f"{first.get(SAMPLES, 1)} {kind} samples",
        f"of {'/'.join(map(str, sorted(bits)[:4]))} bits",
        f"photometric {first.get(PHOTOMETRIC, 'not given')}",
        f"compression {first.get(COMPRESSION, 1)}",
    )
    return ValueError(f"its pixels are {', '.join(parts)}: convert it to 8 or 16 bit RGB")


def _chunks(
    tags: Tags, first: dict[int, int], size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    """Return width and height of a strip or tile, their offsets and byte counts."""
    if TILE_OFFSETS in tags:
        chunk = first.get(TILE_WIDTH, 0), first.get(TILE_HEIGHT, 0)
        places = tags[TILE_OFFSETS], tags.get(TILE_COUNTS, ())
    else:
        chunk = size[0], min(size[1], first.get(ROWS_PER_STRIP, size[1]))
        places = tags.get(STRIP_OFFSETS, ()), tags.get(STRIP_COUNTS, ())
    return chunk, *places


def check_strips(content: bytes, tags: Tags) -> None:
    """Raise `truncated` if strips or tiles exceed the file; libtiff's error does not say so."""
    for offsets, counts in ((STRIP_OFFSETS, STRIP_COUNTS), (TILE_OFFSETS, TILE_COUNTS)):
        _check_ends(content, tags.get(offsets, ()), tags.get(counts, ()))


def _check_ends(content: bytes, offsets: Sequence[int], counts: Sequence[int]) -> None:
    ends = (start + count for start, count in zip(offsets, counts, strict=False))
    if any(end > len(content) for end in ends):
        raise Rejection(
            RejectReason.TRUNCATED, f"TIFF of {len(content)} bytes ends before its pixels do"
        )


def _check_chunks(content: bytes, layout: Layout) -> None:
    """Check that all strips or tiles are in the file, before memory for pixels is allocated."""
    (width, height), (across, down) = layout.size, layout.chunk
    if across < 1 or down < 1 or across > width + 65536 or down > height + 65536:
        raise ValueError("its strips or tiles have no size")
    planes = layout.samples if layout.is_planar else 1
    needed = -(-width // across) * -(-height // down) * planes
    if min(len(layout.offsets), len(layout.counts)) < needed:
        raise ValueError("strips or tiles are missing")
    _check_ends(content, layout.offsets, layout.counts)
    if down * layout.chunk_row_bytes > _MAX_STRIP_BYTES and layout.compression != _NONE:
        raise Rejection(
            RejectReason.TOO_LARGE,
            f"a strip unpacks to {down * layout.chunk_row_bytes >> 20} MiB, the limit is "
            f"{_MAX_STRIP_BYTES >> 20}: write it with fewer rows a strip",
        )


def _read_samples(content: bytes, layout: Layout) -> NDArray[Any]:
    """Return [height, width, colours (+ 1 with alpha)] in native byte order; floats as float32."""
    width, height = layout.size
    kept = layout.colours + bool(layout.alpha)
    kind = np.dtype(np.float32) if layout.kind.kind == "f" else layout.kind.newbyteorder("=")
    samples = np.empty((height, width, kept), kind)
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
                    samples[top:bottom, left:right, plane] = part[..., 0]
                else:
                    samples[top:bottom, left:right] = part[..., :kept]
    return samples


def _bands(content: bytes, layout: Layout, chunks: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield bands of several strips or of a column of tiles, each with the index of its first."""
    down = layout.chunk[1]
    per_band = max(1, _BAND_BYTES // (down * layout.chunk_row_bytes))
    for first in range(0, len(chunks), per_band):
        group = chunks[first : first + per_band]
        # The last strip holds the remaining rows; tiles are always whole.
        missing = (first + len(group)) * down - layout.size[1]
        is_strip = layout.chunk[0] == layout.size[0]
        height = len(group) * down - (max(0, missing) if is_strip else 0)
        raw = _decompress(content, layout, group, height)
        yield first, _undo_predictor(raw, layout)


def _decompress(content: bytes, layout: Layout, group: list[int], height: int) -> NDArray[np.uint8]:
    """Return bytes [height, bytes per row] of the strips or tiles of `group`."""
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
    """Return a one-channel 8-bit TIFF of strips that are compressed as in `layout`."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[WIDTH], directory[HEIGHT] = layout.chunk_row_bytes, height
    directory[BITS], directory[SAMPLES] = 8, 1
    directory[COMPRESSION], directory[PHOTOMETRIC] = layout.compression, _BLACK_IS_ZERO
    directory[ROWS_PER_STRIP] = layout.chunk[1]
    directory[STRIP_COUNTS] = tuple(map(len, packed))
    # Pillow adds the place behind the directory to the offsets.
    directory[STRIP_OFFSETS] = tuple(itertools.accumulate(map(len, packed[:-1]), initial=0))
    file = io.BytesIO()
    directory.save(file)
    return b"".join([file.getvalue(), *packed])


def _undo_predictor(raw: NDArray[np.uint8], layout: Layout) -> NDArray[Any]:
    """Return samples [height, width, samples] from the bytes of rows; undoes the predictor."""
    samples = 1 if layout.is_planar else layout.samples
    height, size = len(raw), layout.kind.itemsize
    if layout.predictor == _FLOATING:
        # Adobe Photoshop TIFF technical note 3: byte planes, highest byte first, with differences
        # of bytes at a distance of one pixel's samples.
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
