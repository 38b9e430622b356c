import io
import json
import tarfile
from importlib import resources

import dlib
import numpy as np
import pytest
from PIL import Image

from pipeline.images import Rejection, RejectReason, decode

SHARDS = ("samples-0000.tar", "samples-0001.tar")
FACES = {f"portraits/{number:04d}.jpg": 1 for number in range(1, 13)} | {
    "unusual/alpha.png": 1,
    "unusual/grey.jpg": 1,
    "unusual/photo.webp": 1,
    "unusual/stored-sideways.jpg": 1,
    "unusual/two-faces.jpg": 2,
    "rejects/landscape.jpg": 0,
    "rejects/upside-down.jpg": 0,
}
REFUSED = {
    "rejects/corrupt.jpg": RejectReason.UNDECODABLE,
    "rejects/cut-short.jpg": RejectReason.TRUNCATED,
    "rejects/text.jpg": RejectReason.UNSUPPORTED_FORMAT,
    "rejects/thumbnail.jpg": RejectReason.TOO_SMALL,
}


def shard(name: str) -> bytes:
    return resources.files("pipeline").joinpath("samples", name).read_bytes()


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    found = {}
    for name in SHARDS:
        with tarfile.open(fileobj=io.BytesIO(shard(name))) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def test_the_shards_hold_what_their_readme_lists_in_three_megabytes(content):
    assert {name for name in content if not name.endswith(".json")} == {*FACES, *REFUSED}
    assert sum(len(shard(name)) for name in SHARDS) < 3_000_000


def test_every_sidecar_stands_beside_its_portrait(content):
    sidecars = [name for name in content if name.endswith(".json")]
    assert len(sidecars) == 12
    for name in sidecars:
        assert name.replace(".json", ".jpg") in content
        assert json.loads(content[name])["seed"] == 2021


@pytest.fixture(scope="module")
def detector():
    return dlib.get_frontal_face_detector()


@pytest.mark.parametrize("name", FACES)
def test_the_detector_finds_the_promised_faces(content, detector, name):
    image = decode(content[name])
    image.thumbnail((512, 512), Image.Resampling.BILINEAR)
    boxes = detector(np.asarray(image), 0)
    assert len(boxes) == FACES[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused_for_its_own_reason(content, name):
    with pytest.raises(Rejection) as raised:
        decode(content[name])
    assert raised.value.reason is REFUSED[name]


def test_the_sideways_photo_is_stored_lying_and_comes_out_standing(content):
    with Image.open(io.BytesIO(content["unusual/stored-sideways.jpg"])) as stored:
        assert stored.size == (640, 480)
    assert decode(content["unusual/stored-sideways.jpg"]).size == (480, 640)


def test_the_unusual_ones_are_what_they_are_called(content):
    def mode(name: str) -> str:
        with Image.open(io.BytesIO(content[name])) as image:
            return f"{image.format} {image.mode}"

    assert mode("unusual/alpha.png") == "PNG RGBA"
    assert mode("unusual/grey.jpg") == "JPEG L"
    assert mode("unusual/photo.webp") == "WEBP RGB"
