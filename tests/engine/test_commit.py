"""What the driver counts and commits of the rows that come out of the stages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from pipeline.config import JobConfig
from pipeline.engine import commit, run
from pipeline.engine.dataset import Stages
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.rows import Row, failed_row
from pipeline.engine.run import Committer
from pipeline.errors import StorageError
from pipeline.storage import CREDENTIALS_EXPIRED
from pipeline.table import RunRecord, open_table, part_index
from tests.engine.conftest import end, is_committed


def test_a_shard_is_committed_when_all_its_parts_are_there_in_any_order(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    for row in (written(1), end()):
        committer.take(row)
    assert list(plan.states) == ["files-00000"]
    committer.take(written(0))
    assert list(plan.states) == [], "what is whole is forgotten"
    committer.finish()
    assert is_committed(plan)
    assert (outcome.errors, outcome.exit_code, outcome.counts.shards) == ([], 0, 1)
    assert outcome.counts.stage_seconds["align"] == 3.0
    assert open_table(plan.writer.store.root).verify()["samples"] == 4


def test_a_part_that_comes_twice_counts_once(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    for row in (written(0), written(0), written(1), end(), written(1), end()):
        committer.take(row)
    committer.finish()
    assert is_committed(plan)
    counts = outcome.counts
    assert (counts.parts, counts.samples, counts.rejects, counts.shards) == (2, 4, 4, 1)
    assert outcome.errors == []


def test_an_end_whose_number_a_part_has_is_no_part_that_came_twice(
    outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    """Of a shard that the limit cuts, once more was taken than is."""
    for row in (written(0), written(1), end(parts=1, samples=2)):
        committer.take(row)
    committer.finish()
    assert outcome.errors == ["shard 'files-00000': 2 of 1 of parts arrived"]


def test_a_part_that_never_arrives_is_reported(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    for row in (written(0), end()):
        committer.take(row)
    committer.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of 2 of parts arrived"]
    assert outcome.exit_code == 1
    assert not is_committed(plan)


def test_a_shard_whose_reader_never_ends_is_reported(
    outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    committer.take(written(0))
    committer.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of an unknown number of parts arrived"]


def test_a_failed_part_is_reported_once_with_its_stage(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    committer.take(written(0))
    committer.take(failed_row("files-00000", 1, "invert", ValueError("no memory")))
    committer.take(end())
    committer.finish()
    assert outcome.errors == ["shard 'files-00000', part 1: invert: ValueError: no memory"]
    assert not is_committed(plan)


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures in no time are enough."""
    monkeypatch.setattr(commit, "GIVE_UP_PARTS", 2)
    monkeypatch.setattr(commit, "GIVE_UP_S", 0.0)


def failure(part: int, stage: str = "write") -> Row:
    return failed_row("files-00000", part, stage, StorageError("expired"))


@pytest.mark.usefixtures("given_up")
# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_run_whose_parts_all_fail_gives_up(
    plan: Plan,
    outcome: RunRecord,
    config_of: Callable[..., JobConfig],
    without_ray: Callable[[list[Row]], None],
) -> None:
    assert plan.works
    without_ray([failure(0), failure(1), failure(2), failure(3)])
    run._execute(config_of(), plan, outcome, Stages())
    first, *others = outcome.errors
    assert first.startswith("given up: 2 parts failed one after another")
    parts = [f"shard 'files-00000', part {n}: write: StorageError: expired" for n in (0, 1)]
    assert others == parts, "no other part is waited for, and no missing shard listed"
    assert outcome.exit_code == 1


@pytest.mark.usefixtures("given_up")
def test_failures_with_a_success_between_them_are_no_reason_to_give_up(
    committer: Committer, written: Callable[[int], Row]
) -> None:
    for row in (failure(1), written(0), failure(1)):
        committer.take(row)
    assert not committer.gave_up
    committer.take(failure(1))
    assert committer.gave_up


@pytest.mark.usefixtures("given_up")
def test_damaged_shards_are_no_reason_to_give_up(committer: Committer) -> None:
    for part in range(5):
        committer.take(failure(part, "read"))
    assert not committer.gave_up


def test_an_outage_of_seconds_is_no_reason_to_give_up(committer: Committer) -> None:
    for part in range(100):
        committer.take(failure(part))
    assert not committer.gave_up


def test_samples_that_no_part_accounts_for_are_reported(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    for row in (written(0), written(1), end(samples=5)):
        committer.take(row)
    assert outcome.errors == ["shard 'files-00000': 5 samples in, 4 accounted for"]
    assert not is_committed(plan)


def test_a_commit_that_fails_costs_its_shard_and_not_the_run(
    plan: Plan, outcome: RunRecord, committer: Committer, written: Callable[[int], Row]
) -> None:
    committer.take(written(0))
    row = written(1)
    plan.writer.store.remove("rejects/files-00000-00001.parquet")
    committer.take(row)
    committer.take(end())
    committer.finish()
    (error,) = outcome.errors
    assert "'rejects/files-00000-00001.parquet' is missing" in error


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> Callable[[], list[str]]:
    """One part is many; the files of the part index."""
    monkeypatch.setattr(part_index, "PARTS_INDEXED_AT_ONCE", 1)
    return lambda: plan.writer.store.names("_index/parts/")


def test_a_part_is_indexed_until_its_shard_is_committed(
    plan: Plan,
    committer: Committer,
    written: Callable[[int], Row],
    indexed: Callable[[], list[str]],
) -> None:
    committer.take(written(0))
    assert len(indexed()) == 1
    for row in (written(1), end()):
        committer.take(row)
    committer.finish()
    assert is_committed(plan)
    assert indexed() == []


def test_a_part_whose_etags_are_unknown_is_not_indexed(
    committer: Committer, written: Callable[[int], Row], indexed: Callable[[], list[str]]
) -> None:
    row = written(0)
    row["summary"] = json.dumps(json.loads(row["summary"]) | {"rejects_etag": ""})
    committer.take(row)
    assert indexed() == []


@pytest.mark.parametrize("untrue", [{"faces": 1}, {"samples": 1}])
def test_a_failed_commit_forgets_the_index_of_its_shard(
    plan: Plan,
    written: Callable[[int], Row],
    indexed: Callable[[], list[str]],
    config_of: Callable[..., JobConfig],
    untrue: dict[str, int],
) -> None:
    """What the index says wrongly costs one run, and the next one is right."""

    def resume() -> list[str]:
        again, outcome = make_plan(config_of()), RunRecord()
        assert [work.existing for work in again.works] == [{0}]
        committer = Committer(again, outcome)
        for row in (written(1), end()):
            committer.take(row)
        committer.finish()
        return outcome.errors

    row = written(0)
    row["summary"] = json.dumps(json.loads(row["summary"]) | untrue)
    Committer(plan, RunRecord()).take(row)
    assert len(indexed()) == 1
    (error,) = resume()
    assert re.search("cannot be committed: another run|4 samples in, 3 accounted for", error)
    assert indexed() == []
    for kind in ("latents", "rejects"):
        plan.writer.store.remove(f"{kind}/files-00000-00001.parquet")
    assert resume() == []
    assert is_committed(plan)


def test_the_parts_of_an_earlier_run_need_not_come_again(
    plan: Plan,
    outcome: RunRecord,
    written: Callable[[int], Row],
    config_of: Callable[..., JobConfig],
) -> None:
    written(0)
    again = make_plan(config_of())
    assert [work.existing for work in again.works] == [{0}]
    committer = Committer(again, outcome)
    committer.take(written(1))
    committer.take(end())
    committer.finish()
    assert is_committed(plan)
    assert outcome.counts.parts == 1


def test_whose_credentials_expired_is_said_first() -> None:
    outcome = RunRecord()
    outcome.fail("shard 'a': 1 of 2 of parts arrived")
    outcome.explain_expired(input="s3://in", output="s3://out/table")
    assert len(outcome.errors) == 1, "nothing expired"
    for uri in ("s3://in/a.tar", "s3://out/table-2/x"):
        outcome.fail(f"read: cannot read '{uri}': {CREDENTIALS_EXPIRED} (ExpiredToken): renew")
    outcome.explain_expired(input="s3://in", output="s3://out/table")
    assert outcome.errors[0].startswith("credentials expired for the input 's3://in': get new ones")
    assert outcome.exit_code == 1
