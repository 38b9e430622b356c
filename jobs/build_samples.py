"""Make the sample shards of the demo: photo-like frames around synthetic faces, and rejects.

    pip download --no-deps random-face==2021.7.21.1
    pip install openvino
    python jobs/build_samples.py --wheel random_face-2021.7.21.1-py3-none-any.whl

The faces are rendered by the StyleGAN2 descendant in that package, 2 seconds each, from seeded
codes. Neither package is needed to run the pipeline. The same wheel and the same openvino give the
same pictures; see `pipeline/samples/README.md` for what is in the shards and for the licence.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.cli import exit_code_of, job_parser
from pipeline.errors import ConfigError, InputError

SAMPLES = Path(__file__).parents[1] / "pipeline" / "samples"
SEED = 2021
PSI = 0.7  # how far from the mean face: 0 the mean, 1 anything the network draws
FACE_SIDE = 1024
SURROUNDINGS = 800  # pixels painted on every side of a rendered face
ORIENTATION = 0x0112  # EXIF's tag; 6: the stored picture is to be turned clockwise

Picture = NDArray[np.float32]  # [h, w, 3] in 0..255


@dataclass(frozen=True)
class Frame:
    """A photo around one face: which code, how large, where, how tilted."""

    face: int  # number of the code in the seeded sequence
    width: int
    height: int
    span: int  # side of the rendered square in the photo; the face is half of it
    x: int  # its centre
    y: int
    roll: float = 0.0  # degrees, counter-clockwise


PORTRAITS = (
    Frame(2, 480, 600, 470, 240, 350, 4),
    Frame(3, 640, 480, 420, 250, 260, -7),
    Frame(4, 512, 640, 500, 262, 380, 12),
    Frame(7, 512, 512, 430, 256, 290),
    Frame(9, 640, 480, 390, 375, 290, 16),
    Frame(12, 480, 600, 400, 230, 390, -20),
    Frame(25, 600, 480, 400, 300, 270, 8),
    Frame(28, 512, 640, 460, 250, 400, -12),
    Frame(31, 640, 480, 440, 330, 255),
    Frame(33, 480, 600, 420, 250, 380, 20),
    Frame(37, 512, 512, 380, 240, 310, -4),
    Frame(43, 640, 512, 470, 320, 275, -15),
)
GREY = Frame(41, 480, 600, 450, 240, 360, 3)
WITH_ALPHA = Frame(45, 360, 400, 340, 180, 220)
PAIR = (Frame(10, 720, 480, 390, 195, 285, 6), Frame(36, 720, 480, 360, 535, 300, -8))
LYING = Frame(21, 480, 640, 460, 245, 390, -5)
WEBP = Frame(40, 640, 480, 400, 360, 280, 10)
CUT_SHORT = Frame(23, 512, 512, 420, 256, 290)
UPSIDE_DOWN = Frame(34, 512, 512, 400, 256, 300)
THUMBNAIL = Frame(47, 512, 512, 480, 256, 270)


class FaceRenderer:
    """Renders numbered faces, [1024, 1024, 3] in 0..255, with the networks inside the wheel."""

    def __init__(self, wheel: Path) -> None:
        try:
            import openvino  # only this job needs it
        except ImportError as error:
            raise ConfigError("rendering faces needs openvino: pip install openvino") from error
        core = openvino.Core()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
            data = Path(folder) / "random_face" / "data"
            mapping = core.read_model(data / "MappingNetwork.xml")
            mapping.reshape({"var": [2000, 512]})
            to_w = core.compile_model(mapping, "CPU")
            self.synthesis = core.compile_model(
                core.read_model(data / "SynthesisNetwork.xml"),
                "CPU",
                {"INFERENCE_PRECISION_HINT": "f32"},
            )
        rng = np.random.default_rng(SEED)
        w = to_w([rng.standard_normal((2000, 512), dtype=np.float32)])[0]
        mean = w.mean(axis=0)
        self.codes = mean + PSI * (w - mean)

    def render(self, number: int) -> Picture:
        image = self.synthesis([self.codes[number : number + 1]])[0][0]
        picture: Picture = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) * np.float32(127.5)
        return picture


def to_image(picture: Picture) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(picture, 0, 255)).astype(np.uint8))


def ramp(values: NDArray[Any], start: float, end: float) -> NDArray[np.float32]:
    """Return 0 up to `start`, 1 from `end` on, smooth between."""
    t = np.clip((values - start) / (end - start), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def blurred(picture: Picture, radius: int) -> Picture:
    """Blur a reduced copy, as the radius is large."""
    small = to_image(picture).reduce(8).filter(ImageFilter.GaussianBlur(radius / 8))
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32)


def surrounded(face: Picture) -> Picture:
    """Extend the face beyond its border, more and more out of focus, without a visible seam."""
    wide = np.pad(face, ((SURROUNDINGS,) * 2, (SURROUNDINGS,) * 2, (0, 0)), mode="edge")
    # Hair often touches the upper border; what is above it goes from corner to corner instead.
    left, right = (face[:100, part].mean(axis=(0, 1)) for part in (slice(60), slice(-60, None)))
    across = ramp(np.arange(len(wide)), SURROUNDINGS, SURROUNDINGS + FACE_SIDE)[None, :, None]
    wide[:SURROUNDINGS] = left + across * (right - left)
    near, far = blurred(wide, 40), blurred(wide, 200)
    offset = np.abs(np.arange(len(wide)) - len(wide) / 2) - FACE_SIDE / 2 + 60
    outside = np.hypot(*np.meshgrid(offset.clip(0), offset.clip(0)))[..., None]
    wide += ramp(outside, 0, 60) * (near - wide)
    wide += ramp(outside, 40, 420) * (far - wide)
    return wide


def photograph(face: Picture, frame: Frame) -> Picture:
    """Return the photo [height, width, 3] that `frame` describes, with a little grain."""
    scale = frame.span / FACE_SIDE
    wide = to_image(surrounded(face))
    side = round(wide.width * scale)
    wide = wide.resize((side, side), Image.Resampling.LANCZOS)
    cosine, sine = np.cos(np.radians(frame.roll)), np.sin(np.radians(frame.roll))
    turn = np.array([[cosine, -sine], [sine, cosine]])  # from the photo to the canvas
    shift = np.array([side / 2, side / 2]) - turn @ np.array([frame.x, frame.y])
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    size = (frame.width, frame.height)
    photo = wide.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(frame.face).normal(0, 1.5, (frame.height, frame.width, 1))
    return np.asarray(photo, np.float32) + grain.astype(np.float32)


def side_by_side(left: Picture, right: Picture) -> Picture:
    across = np.linspace(0, 1, left.shape[1])[None, :, None]
    return left + ramp(across, 0.4, 0.6) * (right - left)


def landscape(width: int = 640, height: int = 426) -> Picture:
    """Draw hills under an evening sky, without a face."""
    rng = np.random.default_rng(SEED)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    sky = ramp(y, 0, 0.75)[..., None]
    picture = (1 - sky) * np.array([92, 138, 190]) + sky * np.array([250, 205, 160])
    glow = np.exp(-(((x - 0.7) / 0.25) ** 2 + ((y - 0.5) / 0.18) ** 2))[..., None]
    picture += glow * (np.array([255, 236, 200]) - picture) * 0.8
    for depth in np.linspace(0, 1, 5):
        ridge = 0.5 + 0.11 * depth * 2
        for octave in range(1, 8):
            phase, size = rng.uniform(0, 2 * np.pi), 0.11 * rng.uniform(0.4, 1) / 1.8**octave
            ridge = ridge + size * np.sin(2 * np.pi * x * 1.8**octave / 1.6 + phase)
        ground = np.array([150, 165, 185]) * (1 - depth) + np.array([38, 62, 44]) * depth
        haze = 1 + 0.25 * (y - ridge)[..., None]
        picture = np.where((y > ridge)[..., None], ground * haze, picture)
    grain = rng.normal(0, 2, (height, width, 1))
    return np.asarray(picture + grain, np.float32)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def lying(upright: Image.Image) -> bytes:
    """Return a JPEG that is stored on its side, with the EXIF orientation for it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)


def cut_out(picture: Picture) -> Image.Image:
    """Return an RGBA image, opaque in the middle and transparent at the corners."""
    height, width = picture.shape[:2]
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    image = to_image(picture)
    image.putalpha(Image.fromarray((255 * (1 - ramp(np.hypot(x, y), 0.95, 1.15))).astype(np.uint8)))
    return image


def files(renderer: FaceRenderer) -> Iterator[tuple[int, str, bytes]]:
    """Yield (shard, name, content) of every member."""

    def photo(frame: Frame) -> Image.Image:
        return to_image(photograph(renderer.render(frame.face), frame))

    for number, frame in enumerate(PORTRAITS, start=1):
        shard = int(number > len(PORTRAITS) // 2)
        yield shard, f"portraits/{number:04d}.jpg", encode(photo(frame))
        sidecar = {"rendered_by": "random-face 2021.7.21.1", "seed": SEED, "psi": PSI}
        yield shard, f"portraits/{number:04d}.json", json.dumps(sidecar | asdict(frame)).encode()
    pair = [photograph(renderer.render(frame.face), frame) for frame in PAIR]
    thumbnail = photo(THUMBNAIL).resize((28, 28), Image.Resampling.LANCZOS)
    upside_down = photo(UPSIDE_DOWN).transpose(Image.Transpose.ROTATE_180)
    whole = encode(photo(CUT_SHORT))
    noise = np.random.default_rng(SEED).bytes(6000)
    yield 0, "unusual/alpha.png", encode(cut_out(np.asarray(photo(WITH_ALPHA), np.float32)), "PNG")
    yield 0, "unusual/grey.jpg", encode(photo(GREY).convert("L"))
    yield 0, "unusual/two-faces.jpg", encode(to_image(side_by_side(*pair)))
    yield 0, "rejects/corrupt.jpg", whole[:24] + noise + whole[-2:]
    yield 0, "rejects/landscape.jpg", encode(to_image(landscape()))
    yield 0, "rejects/text.jpg", b"This file calls itself a JPEG, and is a line of text.\n"
    yield 1, "unusual/photo.webp", encode(photo(WEBP), "WEBP", quality=85)
    yield 1, "unusual/stored-sideways.jpg", lying(photo(LYING))
    yield 1, "rejects/cut-short.jpg", whole[: len(whole) // 2]
    yield 1, "rejects/thumbnail.jpg", encode(thumbnail)
    yield 1, "rejects/upside-down.jpg", encode(upside_down)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = job_parser(__doc__, reads_only=True)
    parser.add_argument("--wheel", type=Path, required=True, help="the random-face wheel")
    parser.add_argument("--output", type=Path, default=SAMPLES, help="folder of the shards")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.wheel.is_file():
        raise InputError(f"the wheel '{arguments.wheel}' does not exist")
    entries = sorted(files(FaceRenderer(arguments.wheel)))
    for shard in (0, 1):
        path = arguments.output / f"samples-{shard:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _, name, content in (entry for entry in entries if entry[0] == shard):
                info = tarfile.TarInfo(name)  # its time is 0: the same content, the same file
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        print(f"{path}: {path.stat().st_size} bytes")
    return 0


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    return exit_code_of(lambda: run(arguments), reads_only=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
