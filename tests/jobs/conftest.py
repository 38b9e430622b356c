"""A dataset of twelve images, and one undisturbed run over it that several tests compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.jobs.running import Ended, run_job

SECRET = "planted-secret-of-the-environment"
FILES_PER_SHARD = 6
SETTINGS = ("--identity", "none", "--part-size", 1, "--files-per-shard", FILES_PER_SHARD)
WORKERS = ("--align-workers", 1, "--inverters", 1)

NAMES = (
    *(f"portraits/{number:04d}.jpg" for number in range(1, 7)),
    "rejects/corrupt.jpg",
    "rejects/cut-short.jpg",
    "rejects/landscape.jpg",
    "rejects/text.jpg",
    "rejects/thumbnail.jpg",
    "unusual/two-faces.jpg",
)
REASONS = {
    "no_face": 1,
    "too_small": 1,
    "truncated": 1,
    "undecodable": 1,
    "unsupported_format": 1,
}


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed, and where it ran."""

    folder: Path
    run: Ended

    @property
    def table(self) -> Path:
        """Return the folder of its table."""
        return self.folder / "table"


@pytest.fixture(scope="session")
def dataset(sample_images: dict[str, bytes]) -> dict[str, bytes]:
    """Return the images by name, sorted: two shards of six parts of one image."""
    return {name: sample_images[name] for name in NAMES}


@pytest.fixture(scope="session")
def photos(dataset: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the dataset as a folder."""
    folder = tmp_path_factory.mktemp("dataset") / "photos"
    for name, content in dataset.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def undisturbed(photos: Path, tiny_bundle: str) -> Undisturbed:
    """Run the job over the folder with a config file, flags and relative paths."""
    folder = photos.parent
    (folder / "model").symlink_to(tiny_bundle)
    config = {"input": "photos", "model": "./model", "steps": 2, "part_size": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    run = run_job(
        folder,
        *("--config", "run.yaml", "--output", "table", "--steps", 5, *SETTINGS),
        AWS_SECRET_ACCESS_KEY=SECRET,
    )
    assert run.code == 0, run.err
    return Undisturbed(folder, run)


@pytest.fixture
def in_its_folder(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the folder of the undisturbed run."""
    monkeypatch.chdir(undisturbed.folder)
