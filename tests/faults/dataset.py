"""Input of the schedules: three archives and loose pictures, forty images of sixteen pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.storage import Store, list_shards, read_samples
from tests.storage.archives import write_tar

PART_SIZE = 4
ARCHIVES = {"a": 17, "b": 9, "c": 1}
LOOSE = 8


def picture(name: str, edition: int = 0) -> bytes:
    """Return a PNG of noise; another `edition` is a different picture, usually of another size."""
    noise = np.random.default_rng([*name.encode(), edition])
    pixels = noise.integers(0, 256, (16, 16, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def write_archive(folder: Path, name: str, count: int, edition: int = 0) -> Path:
    """Write the archive `name` with `count` pictures; an older one is replaced atomically."""
    members = [(f"{n:03d}.png", picture(f"{name}{n}", edition)) for n in range(count)]
    ready = write_tar(folder / f".{name}.ready", members)
    return ready.replace(folder / f"{name}.tar")


def write_dataset(folder: Path) -> Path:
    """Write the whole input."""
    for name, count in ARCHIVES.items():
        write_archive(folder, name, count)
    for number in range(LOOSE):
        write_loose(folder, number)
    return folder


def write_loose(folder: Path, number: int, edition: int = 0) -> None:
    """Write one of the loose pictures."""
    path = folder / "loose" / f"{number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(f"loose{number}", edition))


def upload(folder: Path, uri: str) -> None:
    """Copy the files of `folder` to `uri`."""
    store = Store(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())


def sample_ids(uri: str, files_per_shard: int) -> set[str]:
    """Return `<shard-id>/<key>` of every sample in the input."""
    return {
        f"{shard.shard_id}/{sample.key}"
        for shard in list_shards(uri, files_per_shard=files_per_shard)
        for sample in read_samples(shard)
    }
