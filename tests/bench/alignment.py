"""Faces per second of one core: this library's alignment against the reference scripts' way.

python tests/bench/alignment.py [--photos DIR] [--count N]
"""

from __future__ import annotations

import argparse
import io
import json
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

from pipeline.alignment import Aligner, crop_quad, ffhq_quad  # noqa: E402
from pipeline.alignment.detection import LANDMARK_MODEL  # noqa: E402
from pipeline.dlib_models import dlib_model  # noqa: E402
from pipeline.images import Rejection  # noqa: E402
from tests.alignment.drawn import scene  # noqa: E402

REGIME = """\
Regime: bytes in memory -> one aligned 256 px face, on one core, image by image.
  reference  decode, dlib HOG on the full image with upsample 1, 68 landmarks, FFHQ crop
  ours       decode, dlib HOG on a copy of at most 448 px with upsample 0 (where nothing is found:
             upsample 1, then 896 px), landmarks on the full image, FFHQ crop, quality fields
Both sides build detector and predictor once and share the crop, so the difference is detection:
scripts that rebuild the detector for each image pay half a second more.
Seconds are CPU seconds; the two sides take turns, so a busy machine slows both alike.
"""


@dataclass
class Side:
    """One way to align, and what it took."""

    name: str
    align: Callable[[bytes], bool]
    seconds: list[float] = field(default_factory=list)
    found: int = 0

    def run(self, content: bytes) -> None:
        """Align one image and note the outcome."""
        start = time.process_time()
        self.found += self.align(content)
        self.seconds.append(time.process_time() - start)

    @property
    def faces_per_second(self) -> float:
        """Of one core."""
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


def our_way() -> Callable[[bytes], bool]:
    """`Aligner` with its defaults."""
    aligner = Aligner()

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

    sides = [Side("reference", reference_way()), Side("ours", our_way())]
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
    reference, ours = sides
    ratio = ours.faces_per_second / reference.faces_per_second
    print(f"\nours / reference: {ratio:.1f} times the faces per second of a core\n")
    summary = {
        "bench": "alignment",
        "images": len(contents),
        "real_photos": real,
        "faces_per_second_reference": round(reference.faces_per_second, 2),
        "faces_per_second_ours": round(ours.faces_per_second, 2),
        "ratio": round(ratio, 2),
        "recall_reference": reference.found / len(contents),
        "recall_ours": ours.found / len(contents),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
