"""Which faces are found, and at what cost: turned photos, small faces, photos without one.

python tests/bench/face_search.py [--photos DIR] [--count N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.alignment import AlignmentSettings  # noqa: E402
from pipeline.alignment.detection import Detection, find_faces  # noqa: E402
from pipeline.alignment.photo import TURNS, turned  # noqa: E402
from pipeline.alignment.search import Search  # noqa: E402
from pipeline.images import Rejection, decode  # noqa: E402

REGIME = """\
Regime: decoded photos -> where their face is, on one core; CPU seconds. Every photo holds one face.
  turned   each photo turned by 90, 180 and 270 degrees: right, rejected, wrong
  beside   what lies beside and below the faces, each part a photo without one: taken for a face
  small    photos reduced to a face of so many pixels, pasted into landscapes: found by dlib on the
           full image as it is and doubled (upsample 0 and 1), and by ours for each --search-pixels
  none     the landscapes alone: what a photo without a face costs
"""
MOST = (0, 4_000_000, 16_000_000, 64_000_000)  # --search-pixels
LANDSCAPES = {(1024, 768): (30, 44, 60), (2048, 1536): (44, 60, 90), (4032, 3024): (44, 60, 100)}

Found = tuple[int, Detection]


def find(image: Image.Image, most: int = MOST[-1]) -> Found | None:
    """The turn and the face of `image`."""
    try:
        photo, faces = Search(image, AlignmentSettings(search_pixels=most)).find()
    except Rejection:
        return None
    return photo.turn_deg, faces[0]


def count_turns(photos: Sequence[Image.Image]) -> dict[str, dict[str, int]]:
    """How many of the photos come out right, for each turn."""
    counts = {str(turn): Counter(right=0, rejected=0, wrong=0) for turn in TURNS}
    for photo in photos:
        for turn in TURNS:
            found = find(turned(photo, 360 - turn))
            outcome = "rejected" if found is None else "right" if found[0] == turn else "wrong"
            counts[str(turn)][outcome] += 1
    return {turn: dict(each) for turn, each in counts.items()}


def count_beside(photos: Sequence[Image.Image], faces: Sequence[Detection]) -> dict[str, int]:
    """How many parts of the photos, without their face, there are and give one."""
    counts = Counter(parts=0, faces=0)
    for photo, face in zip(photos, faces, strict=True):
        left, right = face.left - 0.35 * face.side, face.right + 0.35 * face.side
        parts = [(0, face.bottom + 0.25 * face.side, photo.width, photo.height)]
        parts += [(0, 0, left, photo.height), (right, 0, photo.width, photo.height)]
        for part in parts:
            if part[2] - part[0] >= 100 and part[3] - part[1] >= 100:
                counts["parts"] += 1
                counts["faces"] += find(photo.crop(tuple(map(int, part)))) is not None
    return dict(counts)


def landscape(size: tuple[int, int]) -> Image.Image:
    """The sample landscape, which holds no face, at `size`."""
    with tarfile.open(ROOT / "pipeline/samples/samples-0000.tar") as tar:
        file = tar.extractfile("rejects/landscape.jpg")
        content = file.read() if file else b""
    return decode(content).resize(size, Image.Resampling.BICUBIC)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the CPU seconds that it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def small_faces(
    photos: Sequence[Image.Image], faces: Sequence[Detection], size: tuple[int, int], side: int
) -> dict[str, Any]:
    """How many faces of `side` pixels are found in landscapes of `size`, and in what time."""
    rng = np.random.default_rng(side)
    ways: dict[str, Callable[[Image.Image], Detection | None]] = {
        f"dlib{n}": lambda image, n=n: next(iter(find_faces(image, 1, n)), None) for n in (0, 1)
    }
    for most in MOST:
        ways[f"{most // 10**6}M"] = lambda image, most=most: (find(image, most) or (0, None))[1]
    counts = {name: {"found": 0, "seconds": 0.0} for name in ways}
    for photo, face in zip(photos, faces, strict=True):
        scale, image = side / face.side, landscape(size)
        small = photo.resize((round(photo.width * scale), round(photo.height * scale)))
        left, top = (int(rng.integers(0, n - m)) for n, m in zip(size, small.size, strict=True))
        image.paste(small, (left, top))
        middle = left + (face.left + face.right) / 2 * scale
        for name, way in ways.items():
            found, seconds = timed(lambda way=way, image=image: way(image))
            near = found and abs((found.left + found.right) / 2 - middle) < side / 2
            counts[name]["found"] += bool(near)
            counts[name]["seconds"] += seconds / len(photos)
    return {"of": len(photos), **counts}


def main() -> None:
    """Parse, count, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/photos/portraits")
    parser.add_argument("--count", type=int, default=12, help="photos (default 12)")
    parser.add_argument("--small", type=int, default=4, help="of these for small faces (default 4)")
    options = parser.parse_args()

    print(REGIME)
    paths = sorted(path for path in options.photos.rglob("*") if path.suffix in (".jpg", ".png"))
    chosen = np.linspace(0, len(paths) - 1, min(options.count, len(paths))).round().astype(int)
    photos = [decode(paths[index].read_bytes()) for index in chosen]
    found = [find_faces(photo, min(448 / max(photo.size), 1)) for photo in photos]
    faces = [each[0] for each in found]

    summary: dict[str, Any] = {"bench": "face_search", "photos": len(photos)}
    summary["turned"] = count_turns(photos)
    print("turned", summary["turned"])
    summary["beside"] = count_beside(photos, faces)
    print("beside", summary["beside"])
    few = slice(0, options.small)
    for size, sides in LANDSCAPES.items():
        name = f"{size[0]}x{size[1]}"
        costs = {f"{m // 10**6}M": timed(lambda m=m, s=size: find(landscape(s), m)) for m in MOST}
        summary[f"none {name}"] = {m: round(seconds, 2) for m, (_, seconds) in costs.items()}
        print(
            "none",
            name,
            summary[f"none {name}"],
            "faces",
            sum(f is not None for f, _ in costs.values()),
        )
        for side in sides:
            small = small_faces(photos[few], faces[few], size, side)
            summary[f"small {name} {side}"] = small
            print("small", name, side, small)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
