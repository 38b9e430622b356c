"""Recall of the face search on real photos; skipped without them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.images import Rejection, RejectReason

FOLDERS = ("congress", "london", "portraits")


def photos(root: Path, folder: str) -> list[Path]:
    return sorted(path for path in (root / folder).iterdir() if path.suffix == ".jpg")


def list_missed(paths: list[Path]) -> list[str]:
    aligner = Aligner()
    missed = []
    for path in paths:
        try:
            aligner.align(path.read_bytes())
        except Rejection as rejection:
            missed.append(f"{path.name} {rejection}")
    return missed


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_sample_of_every_folder_is_found(shared_photos: Path, folder: str) -> None:
    assert list_missed(random.Random(5).sample(photos(shared_photos, folder), 12)) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_photo_yields_a_face(shared_photos: Path, folder: str) -> None:
    assert list_missed(photos(shared_photos, folder)) == []


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_photos_without_a_face_are_rejected(shared_photos: Path, faces: str) -> None:
    aligner = Aligner(AlignmentSettings(faces=faces))  # type: ignore[arg-type]
    paths = photos(shared_photos, "no_face")
    assert paths
    for path in paths:
        with pytest.raises(Rejection) as caught:
            aligner.align(path.read_bytes())
        assert caught.value.reason is RejectReason.NO_FACE, path.name
