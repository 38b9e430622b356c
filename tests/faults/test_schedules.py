"""Selected schedules of faults; `make faults SCHEDULES=100` plays more, of every kind."""

from __future__ import annotations

import pytest

from tests.faults import actions
from tests.faults.__main__ import summary_line
from tests.faults.arena import BrokenPromiseError
from tests.faults.proxy import Rule
from tests.faults.schedule import KINDS, kind_of, play
from tests.faults.storage_kinds import must_have_struck
from tests.faults.world import World

pytestmark = pytest.mark.timeout(900)
WITHOUT_RAY = (
    "kill-in-put",
    "terminate-in-put",
    "late-writer-new-input",
    "late-writer-shorter",
    "late-manifest",
    "two-part-sizes",
    "input-changes",
    "input-shrinks",
    "full-disk",
    "s3-reset-after",
    "s3-truncated",
    "s3-late-put-new-input",
    "s3-late-put-recut",
    "s3-expired",
)
ON_RAY = ("ray-raylet",)
# On Ray a schedule takes a minute of the cores, and these faults strike elsewhere too:
# tests/jobs/test_interrupted_job.py kills the driver of a job, and compares the same bytes; writers
# that go on late are played above, without Ray.
SLOW_ON_RAY = ("ray-driver-killed", "ray-writer-stopped")
SEED_OF = {kind.name: seed for seed, kind in enumerate(KINDS)}


@pytest.mark.parametrize(
    "name",
    [
        *WITHOUT_RAY,
        *ON_RAY,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_ON_RAY),
    ],
)
def test_no_face_is_lost_or_counted_twice(world: World, name: str) -> None:
    result = play(world, SEED_OF[name])
    if result.unavailable:
        pytest.skip(result.unavailable)
    assert result.ok, summary_line(result)


def test_a_seed_determines_the_kind() -> None:
    assert [kind_of(seed).name for seed in range(len(KINDS))] == [kind.name for kind in KINDS]
    assert kind_of(len(KINDS)).name == KINDS[0].name


def test_a_fault_that_never_strikes_is_an_error() -> None:
    rule = Rule("PUT", "bucket/table/", actions.reset_before)
    with pytest.raises(BrokenPromiseError, match="no request was the one to break: PUT bucket"):
        must_have_struck(rule)
