"""An image that crashes its process costs one reject and affects no other image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.alignment import AlignmentSettings, IsolatedAligner
from pipeline.engine.messages import SampleBatch
from pipeline.engine.stages.align import Align
from pipeline.engine.stages.read import SAMPLES
from pipeline.images import decode
from pipeline.storage import Shard
from pipeline.table import Counts
from tests.fuzz.poison import VulnerableAligner, poison, sound

SETTINGS = AlignmentSettings(output_size=(64, 64))


def part(contents: dict[str, bytes]) -> SampleBatch:
    samples = [
        {"key": key, "uri": f"/in/{key}", "content": content, "reject": "", "detail": ""}
        for key, content in contents.items()
    ]
    table = pa.Table.from_pylist(samples, schema=SAMPLES)
    shard = Shard("s", "/in", "folder", 0, "e")
    return SampleBatch(shard, 0, Counts(samples=len(samples)), table)


def test_the_poison_image_is_a_valid_picture() -> None:
    assert np.array_equal(np.asarray(decode(poison())), np.asarray(decode(sound())))


@pytest.mark.parametrize("places", [(2,), (0, 5)])
def test_a_poison_image_costs_one_reject(places: tuple[int, ...]) -> None:
    contents = {str(i): poison() if i in places else sound() for i in range(6)}
    stage = Align(SETTINGS)
    stage.aligner = IsolatedAligner(SETTINGS, factory=VulnerableAligner)
    with stage.aligner:
        done = stage.process(part(contents))
    rejects = done.rejects.to_pylist()
    assert [(reject["key"], reject["reason"]) for reject in rejects] == [
        (str(i), "crashed") for i in places
    ]
    assert all("signal 11 (SIGSEGV), 2 times" in reject["detail"] for reject in rejects)
    faces = done.faces["key"].to_pylist()
    assert faces == [key for key in contents if int(key) not in places]
