"""Compare with results of the official script; skipped without the reference folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import Aligner, AlignmentSettings, crop_quad, ffhq_quad
from pipeline.alignment.detection import find_faces
from pipeline.images import Rejection, RejectReason, decode


def records(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "alignment.json").read_text())["images"]
    return entries


def test_quads_agree_to_a_tenth_of_a_pixel(shared_alignment: Path) -> None:
    checked = 0
    for entry in records(shared_alignment):
        if "quad_in_source_pixels" in entry:
            quad = ffhq_quad(np.array(entry["landmarks"]))
            assert np.abs(quad - entry["quad_in_source_pixels"]).max() < 0.1, entry["file"]
            checked += 1
    assert checked >= 8


def test_crops_agree_to_a_grey_level(shared_alignment: Path) -> None:
    checked = 0
    for entry in records(shared_alignment):
        if "aligned" not in entry or entry["pil_mode"] not in ("RGB", "L"):
            continue
        image = decode((shared_alignment / entry["file"]).read_bytes())
        crop = crop_quad(image, ffhq_quad(np.array(entry["landmarks"])), 256)
        official = Image.open(shared_alignment / entry["aligned"]).convert("RGB")
        error = np.abs(np.asarray(crop, float) - np.asarray(official, float)).mean()
        assert error < (0.3 if "pad" in entry else 0.01), entry["file"]
        checked += 1
    assert checked >= 6


def test_boxes_at_the_official_scale_are_equal(shared_alignment: Path) -> None:
    for entry in records(shared_alignment):
        if entry["pil_mode"] != "RGB" or entry["exif_orientation"]:
            continue
        image = Image.open(shared_alignment / entry["file"])
        faces = find_faces(image, 1, 1)
        boxes = sorted([f.left, f.top, f.right - 1, f.bottom - 1] for f in faces)
        assert boxes == sorted(entry["rects_ltrb"]), entry["file"]


def test_all_faces_of_the_official_detector_are_found(shared_alignment: Path) -> None:
    content = (shared_alignment / "astro_two_faces.png").read_bytes()
    assert len(Aligner(AlignmentSettings(faces="all")).align(content).faces) == 2


@pytest.mark.parametrize("name", ["astro_exif3.jpg", "astro_exif6.jpg", "astro_gray16.png"])
def test_images_the_official_script_fails_on_are_aligned(shared_alignment: Path, name: str) -> None:
    (face,) = Aligner().align((shared_alignment / name).read_bytes()).faces
    assert face.roll_deg == pytest.approx(3, abs=2)


@pytest.mark.parametrize("name", ["astro_tight_gray.png", "astro_tight_rgba_opaque.png"])
def test_padding_works_in_every_colour_mode(shared_alignment: Path, name: str) -> None:
    (face,) = Aligner().align((shared_alignment / name).read_bytes()).faces
    assert face.pad_fraction > 0.1


def test_a_broken_download_is_rejected(shared_alignment: Path) -> None:
    with pytest.raises(Rejection) as caught:
        Aligner().align((shared_alignment / "broken.jpg").read_bytes())
    assert caught.value.reason is RejectReason.TRUNCATED
