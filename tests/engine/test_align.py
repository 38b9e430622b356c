from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.alignment import AlignmentSettings, IsolatedAligner
from pipeline.choices import Icc
from pipeline.engine.messages import FaceBatch, Failure, SampleBatch
from pipeline.engine.stages.align import Align
from pipeline.engine.stages.base import results
from pipeline.engine.stages.read import SAMPLES
from pipeline.storage import Sample, Shard
from pipeline.table import Counts
from tests.alignment.drawn import scene
from tests.alignment.faulty import FaultyAligner
from tests.images.encoded import encode
from tests.images.icc_profiles import DISPLAY_P3, rgb_profile

SETTINGS = AlignmentSettings(output_size=(64, 64))


def photo(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((80, 80, 3), shade, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def part(*samples: Sample) -> SampleBatch:
    rows = [{name: getattr(sample, name) for name in SAMPLES.names} for sample in samples]
    table = pa.Table.from_pylist(rows, schema=SAMPLES)
    shard = Shard("s", "/in", "folder", 0, "e")
    return SampleBatch(shard, 0, Counts(samples=len(samples)), table)


def aligned(settings: AlignmentSettings, *samples: Sample) -> FaceBatch:
    stage = Align(settings)
    stage.setup()
    assert stage.aligner
    with stage.aligner:
        return stage.process(part(*samples))


def of(key: str, content: bytes) -> Sample:
    return Sample(key, f"/in/{key}", content)


@pytest.fixture
def faulty() -> Iterator[Align]:
    stage = Align(SETTINGS)
    stage.aligner = IsolatedAligner(SETTINGS, factory=FaultyAligner)
    with stage.aligner:
        yield stage


def test_an_image_that_kills_its_process_costs_one_reject(faulty: Align) -> None:
    done = faulty.process(part(of("a", photo(1)), of("poison", b"!segfault"), of("b", photo(2))))
    assert (done.counts.faces, done.counts.rejects) == (2, 1)
    assert done.faces["key"].to_pylist() == ["a", "b"]
    (reject,) = done.rejects.to_pylist()
    assert (reject["key"], reject["reason"]) == ("poison", "crashed")
    assert "SIGSEGV" in reject["detail"]
    assert done.counts.reasons == {"crashed": 1}


def test_every_sample_is_a_face_or_a_reject(sample_images: dict[str, bytes]) -> None:
    names = ("portraits/0001.jpg", "rejects/landscape.jpg", "rejects/cut-short.jpg")
    unread = Sample("huge", "/in/huge", b"", "too_large", "2 GiB")
    done = aligned(SETTINGS, *(of(name, sample_images[name]) for name in names), unread)
    (face,) = done.faces.to_pylist()
    rejects = done.rejects.to_pylist()
    assert [(reject["key"], reject["reason"]) for reject in rejects] == [
        ("rejects/landscape.jpg", "no_face"),
        ("rejects/cut-short.jpg", "truncated"),
        ("huge", "too_large"),
    ]
    assert face["source_sha256"] == hashlib.sha256(sample_images[names[0]]).hexdigest()
    assert len(face["pixels"]) == 64 * 64 * 3
    assert np.shape(face["landmarks"]) == (68, 2)
    assert rejects[-1]["source_sha256"] == "", "the hash of what was not read"


def test_a_face_under_the_limit_is_a_reject_beside_its_images_other_face() -> None:
    name, content = "a.png", encode(scene(512, 400, (0, 0, 200), (210, 80, 300)), "PNG")
    done = aligned(replace(SETTINGS, faces="all", min_face_px=130), of(name, content))
    (face,), (reject,) = done.faces.to_pylist(), done.rejects.to_pylist()
    assert (face["key"], face["face_index"], face["n_faces"]) == (name, 0, 2)
    assert (reject["key"], reject["face_index"], reject["reason"]) == (name, 1, "face_too_small")
    assert reject["source_sha256"] == face["source_sha256"]
    assert (done.counts.faces, done.counts.reasons) == (1, {"face_too_small": 1})


@pytest.mark.parametrize(("icc", "ignored"), [("apply", 1), ("ignore", 0)])
def test_profiles_reach_the_child_and_bad_ones_are_counted(icc: Icc, ignored: int) -> None:
    settings = replace(SETTINGS, prealigned=True, icc=icc)
    image = Image.new("RGB", (64, 64), (60, 200, 60))
    p3 = encode(image, "PNG", icc_profile=rgb_profile(DISPLAY_P3))
    bad = encode(image, "PNG", icc_profile=b"not a profile")
    done = aligned(settings, of("p3", p3), of("bad", bad), of("plain", encode(image, "PNG")))
    reds = [face["pixels"][0] for face in done.faces.to_pylist()]
    assert (reds[0] < 30) == (icc == "apply")
    assert reds[1:] == [60, 60]
    assert (done.counts.faces, done.counts.icc_ignored) == (3, ignored)


def test_a_turned_photo_tells_its_turn(sample_images: dict[str, bytes]) -> None:
    upside_down = of("a", sample_images["rejects/upside-down.jpg"])
    for settings, turns in ((SETTINGS, [180]), (replace(SETTINGS, turns="none"), None)):
        done = aligned(settings, upside_down)
        assert done.faces.to_pydict().get("turn_deg") == turns
        assert (done.counts.faces, done.counts.rejects) == ((1, 0) if turns else (0, 1))


def test_a_part_without_faces_keeps_its_columns(faulty: Align) -> None:
    done = faulty.process(part(of("a", b"no image")))
    assert (done.counts.faces, done.counts.rejects) == (0, 1)
    assert "pixels" in done.faces.column_names


def test_an_aligner_that_cannot_start_fails_the_part() -> None:
    stage = Align(SETTINGS)
    stage.aligner = IsolatedAligner(SETTINGS, factory=unbuildable)
    (failure,) = results(stage, part(of("a", photo(1))))
    assert isinstance(failure, Failure)
    assert failure.part == 0
    assert "the alignment process does not start" in failure.error


def unbuildable(settings: AlignmentSettings) -> FaultyAligner:
    raise FileNotFoundError(f"no landmark model for {settings.faces}")


def test_targets_are_paired_by_key(tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "a").write_bytes(photo(200))
    (targets / "b.png").write_bytes(photo(100))
    (targets / "broken").write_bytes(b"no image")
    (tmp_path / "outside").write_bytes(photo(9))
    settings = replace(SETTINGS, prealigned=True)
    stage = Align(settings, str(targets))
    stage.setup()
    assert stage.aligner
    keys = ("a", "missing", "broken", "../outside", str(tmp_path / "outside"))
    with stage.aligner:
        samples = (*(of(key, photo(1)) for key in (*keys, "b.jpg")), of("bad", b"no image"))
        done = stage.process(part(*samples))
    assert [(set(face["pixels"]), set(face["target"])) for face in done.faces.to_pylist()] == [
        ({1}, {200}),
        ({1}, {100}),
    ]
    assert [(reject["key"], reject["reason"]) for reject in done.rejects.to_pylist()] == [
        *((key, "no_target") for key in keys[1:]),
        ("bad", "unsupported_format"),
    ]
