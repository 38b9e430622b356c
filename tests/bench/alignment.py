"""Faces per second of one core: this library's alignment against the reference scripts' way.

python tests/bench/alignment.py [--photos DIR] [--count N]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.alignment import Aligner, AlignmentSettings, crop, crop_quad, ffhq_quad  # noqa: E402
from pipeline.alignment.detection import LANDMARK_MODEL  # noqa: E402
from pipeline.alignment.padding import padded  # noqa: E402
from pipeline.child_process import ALLOCATOR  # noqa: E402
from pipeline.choices import EARLIER_SEARCH  # noqa: E402
from pipeline.dlib_models import dlib_model  # noqa: E402
from pipeline.images import Rejection, decode  # noqa: E402
from tests.alignment.drawn import scene  # noqa: E402
from tests.alignment.plain_padding import plain_padded  # noqa: E402

REGIME = """\
Regime: bytes in memory -> one aligned 256 px face, on one core, image by image.
  reference  decode, dlib HOG on the full image with upsample 1, 68 landmarks, FFHQ crop
  ours       decode, dlib's frontal filter on a grey copy of 224 px (where it is not sure: dlib HOG
             on a copy of at most 448 px with upsample 0, and on larger and turned ones), landmarks
             on the full image, FFHQ crop, quality fields
  larger     the same without the grey copy (--coarse-side 0)
  untouched  that without turns, checks of weak faces and copies over 1792 px: what these cost on
             upright photos is the difference
All sides build detector and predictor once and share the crop, so the difference is detection:
scripts that rebuild the detector for each image pay half a second more.
All run with the allocator settings of the aligner's own process. Seconds are CPU seconds; the sides
take turns, so a busy machine slows all alike.
Crops: a square that leaves a photo by 0.1 % of its side, by the plain padding that makes the whole
padded image and by ours, whose bytes are the same; and one inside.
"""


@dataclass
class Side:
    """Way to align, with its results and seconds."""

    name: str
    align: Callable[[bytes], bool]
    seconds: list[float] = field(default_factory=list)
    found: int = 0

    def run(self, content: bytes) -> None:
        """Align one image and record the outcome."""
        start = time.process_time()
        self.found += self.align(content)
        self.seconds.append(time.process_time() - start)

    @property
    def faces_per_second(self) -> float:
        """Return the faces per second of one core."""
        return self.found / sum(self.seconds)


def reference_way() -> Callable[[bytes], bool]:
    """Full size, upsample 1, the last face: as the published scripts do it."""
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(dlib_model(LANDMARK_MODEL)))

    def align(content: bytes) -> bool:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        pixels = np.asarray(image)
        landmarks = None
        for box in detector(pixels, 1):
            points = predictor(pixels, box).parts()
            landmarks = np.array([(point.x, point.y) for point in points])
        if landmarks is None:
            return False
        crop_quad(image, ffhq_quad(landmarks), 256)
        return True

    return align


def our_way(settings: AlignmentSettings) -> Callable[[bytes], bool]:
    """`Aligner` as a job runs it."""
    aligner = Aligner(settings)

    def align(content: bytes) -> bool:
        try:
            return bool(aligner.align(content))
        except Rejection:
            return False

    return align


def read_photos(folder: Path, count: int) -> list[bytes]:
    """`count` images, spread evenly over the sorted folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[index].read_bytes() for index in chosen]


def draw_photos(count: int) -> list[bytes]:
    """Drawn faces of several sizes and places, 1024 × 1024 as JPEG."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(count):
        side = int(rng.integers(400, 900))
        left, top = (int(place) for place in rng.integers(0, 1024 - side, 2))
        stream = io.BytesIO()
        scene(1024, 1024, (left, top, side)).save(stream, "JPEG", quality=92)
        contents.append(stream.getvalue())
    return contents


def crop_costs(photo: Image.Image, side: int) -> dict[str, float]:
    """CPU milliseconds of a crop inside, and over the edge by the plain padding and by ours."""
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * side / 2
    inside = corners + np.array(photo.size) / 2
    over = corners + np.array((side / 2 - side / 1000, photo.height / 2))
    ways = {"inside": (inside, padded), "plain": (over, plain_padded), "ours": (over, padded)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(15):
        for name, (quad, padding) in ways.items():
            crop.padded = padding
            start = time.process_time()
            crop_quad(photo, quad, 256)
            seconds[name].append(time.process_time() - start)
    # The least: what else runs on the machine only adds.
    costs = {name: round(1e3 * min(each), 2) for name, each in seconds.items()}
    return costs | {"ratio": round(costs["plain"] / costs["ours"], 2)}


def report_crops(photo: Image.Image) -> dict[int, dict[str, float]]:
    """Print what crops cost at several sizes of the square."""
    photo = photo.resize((1300, 1300))
    costs = {side: crop_costs(photo, side) for side in (250, 500, 750, 1000)}
    print(f"{'side':>10} {'inside ms':>12} {'over, plain':>12} {'over, ours':>12} {'ratio':>8}")
    for side, each in costs.items():
        print(f"{side:10}", *(f"{each[k]:12}" for k in ("inside", "plain", "ours")), end="")
        print(f" {each['ratio']:8}")
    return costs


def main() -> None:
    """Parse, measure side by side, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/photos/portraits")
    parser.add_argument("--count", type=int, default=40, help="images (default 40)")
    options = parser.parse_args()

    print(REGIME)
    real = options.photos.is_dir()
    contents = read_photos(options.photos, options.count) if real else draw_photos(options.count)
    print(f"Input: {len(contents)} images, {options.photos if real else 'drawn faces, 1024 px'}\n")

    sides = [
        Side("reference", reference_way()),
        Side("ours", our_way(AlignmentSettings())),
        Side("larger", our_way(AlignmentSettings(coarse_side=0))),
        Side("untouched", our_way(AlignmentSettings(**EARLIER_SEARCH))),
    ]
    for side in sides:  # the first call of each side pays for caches
        side.align(contents[0])
    for content in contents:
        for side in sides:
            side.run(content)

    print(f"{'':10} {'faces':>9} {'ms an image':>12} {'median ms':>10} {'faces/s a core':>15}")
    for side in sides:
        share = f"{side.found}/{len(contents)}"
        mean, median = 1e3 * np.mean(side.seconds), 1e3 * np.median(side.seconds)
        print(
            f"{side.name:10} {share:>9} {mean:12.1f} {median:10.1f} {side.faces_per_second:15.1f}"
        )
    reference, ours, larger, plain = sides
    ratio = ours.faces_per_second / reference.faces_per_second
    gain = ours.faces_per_second / larger.faces_per_second
    more = 100 * (sum(larger.seconds) / sum(plain.seconds) - 1)
    print(f"\nours / reference: {ratio:.1f} times the faces per second of a core")
    print(f"ours / larger: {gain:.2f} times")
    print(f"turns, checks and larger copies cost {more:.1f} % of the time\n")
    crops = report_crops(decode(contents[0]))
    summary = {
        "bench": "alignment",
        "images": len(contents),
        "real_photos": real,
        "faces_per_second_reference": round(reference.faces_per_second, 2),
        "faces_per_second_ours": round(ours.faces_per_second, 2),
        "ratio": round(ratio, 2),
        "ratio_larger": round(gain, 2),
        "recall_reference": reference.found / len(contents),
        "recall_ours": ours.found / len(contents),
        "search_cost_percent": round(more, 1),
        "crop_ms": crops,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
