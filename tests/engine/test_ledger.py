"""What the ledger counts and commits of the messages that come out of the stages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.config import JobConfig
from pipeline.engine import ledger as ledger_module
from pipeline.engine import run
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import Failure, Message, PartDone
from pipeline.engine.plan import Plan, make_plan
from pipeline.errors import StorageError
from pipeline.storage import CREDENTIALS_EXPIRED
from pipeline.table import RunRecord, open_table, part_index
from tests.engine.conftest import end, failure, is_committed


def test_a_shard_is_committed_when_all_its_parts_are_there_in_any_order(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(1), end()):
        ledger.take(message)
    assert list(plan.states) == ["files-00000"]
    ledger.take(written(0))
    assert list(plan.states) == [], "what is whole is forgotten"
    ledger.finish()
    assert is_committed(plan)
    assert (outcome.errors, outcome.exit_code, outcome.counts.shards) == ([], 0, 1)
    assert outcome.counts.stage_seconds["align"] == 3.0
    assert open_table(plan.writer.store.root).verify()["samples"] == 4


def test_a_part_that_comes_twice_counts_once(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(0), written(0), written(1), end(), written(1), end()):
        ledger.take(message)
    ledger.finish()
    assert is_committed(plan)
    counts = outcome.counts
    assert (counts.parts, counts.samples, counts.rejects, counts.shards) == (2, 4, 4, 1)
    assert outcome.errors == []


def test_an_end_whose_number_a_part_has_is_no_part_that_came_twice(
    outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    """Of a shard that the limit cuts, once more was taken than is."""
    for message in (written(0), written(1), end(parts=1, samples=2)):
        ledger.take(message)
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 2 of 1 of parts arrived"]


def test_a_part_that_never_arrives_is_reported(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(0), end()):
        ledger.take(message)
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of 2 of parts arrived"]
    assert outcome.exit_code == 1
    assert not is_committed(plan)


def test_a_shard_whose_reader_never_ends_is_reported(
    outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    ledger.take(written(0))
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of an unknown number of parts arrived"]


def test_a_failed_part_is_reported_once_with_its_stage(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    ledger.take(written(0))
    ledger.take(failure(1, "invert", ValueError("no memory")))
    ledger.take(end())
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000', part 1: invert: ValueError: no memory"]
    assert not is_committed(plan)


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures in no time are enough."""
    monkeypatch.setattr(ledger_module, "GIVE_UP_PARTS", 2)
    monkeypatch.setattr(ledger_module, "GIVE_UP_S", 0.0)


def expired(part: int, stage: str = "write") -> Failure:
    return failure(part, stage, StorageError("expired"))


@pytest.mark.usefixtures("given_up")
# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_run_whose_parts_all_fail_gives_up(
    plan: Plan,
    outcome: RunRecord,
    config_of: Callable[..., JobConfig],
    without_ray: Callable[[list[Message]], None],
) -> None:
    assert plan.tasks
    without_ray([expired(0), expired(1), expired(2), expired(3)])
    run._execute(config_of(), plan, outcome)
    first, *others = outcome.errors
    assert first.startswith("given up: 2 parts failed one after another")
    parts = [f"shard 'files-00000', part {n}: write: StorageError: expired" for n in (0, 1)]
    assert others == parts, "no other part is waited for, and no missing shard listed"
    assert outcome.exit_code == 1


@pytest.mark.usefixtures("given_up")
def test_failures_with_a_success_between_them_are_no_reason_to_give_up(
    ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (expired(1), written(0), expired(1)):
        ledger.take(message)
    assert not ledger.gave_up
    ledger.take(expired(1))
    assert ledger.gave_up


@pytest.mark.usefixtures("given_up")
def test_damaged_shards_are_no_reason_to_give_up(ledger: Ledger) -> None:
    for part in range(5):
        ledger.take(expired(part, "read"))
    assert not ledger.gave_up


def test_an_outage_of_seconds_is_no_reason_to_give_up(ledger: Ledger) -> None:
    for part in range(100):
        ledger.take(expired(part))
    assert not ledger.gave_up


def test_samples_that_no_part_accounts_for_are_reported(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(0), written(1), end(samples=5)):
        ledger.take(message)
    assert outcome.errors == ["shard 'files-00000': 5 samples in, 4 accounted for"]
    assert not is_committed(plan)


def test_a_commit_that_fails_costs_its_shard_and_not_the_run(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    ledger.take(written(0))
    done = written(1)
    plan.writer.store.remove("rejects/files-00000-00001.parquet")
    ledger.take(done)
    ledger.take(end())
    ledger.finish()
    (error,) = outcome.errors
    assert "'rejects/files-00000-00001.parquet' is missing" in error


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> Callable[[], list[str]]:
    """One part is many; the files of the part index."""
    monkeypatch.setattr(part_index, "PARTS_INDEXED_AT_ONCE", 1)
    return lambda: plan.writer.store.names("_index/parts/")


def test_a_part_is_indexed_until_its_shard_is_committed(
    plan: Plan,
    ledger: Ledger,
    written: Callable[..., PartDone],
    indexed: Callable[[], list[str]],
) -> None:
    ledger.take(written(0))
    assert len(indexed()) == 1
    for message in (written(1), end()):
        ledger.take(message)
    ledger.finish()
    assert is_committed(plan)
    assert indexed() == []


def test_a_part_whose_etags_are_unknown_is_not_indexed(
    ledger: Ledger, written: Callable[..., PartDone], indexed: Callable[[], list[str]]
) -> None:
    done = written(0)
    assert done.record
    ledger.take(replace(done, record=replace(done.record, rejects_etag="")))
    assert indexed() == []


@pytest.mark.parametrize("untrue", [{"faces": 1}, {"samples": 1}])
def test_a_failed_commit_forgets_the_index_of_its_shard(
    plan: Plan,
    written: Callable[..., PartDone],
    indexed: Callable[[], list[str]],
    config_of: Callable[..., JobConfig],
    untrue: dict[str, int],
) -> None:
    """What the index says wrongly costs one run, and the next one is right."""

    def resume() -> list[str]:
        again, outcome = make_plan(config_of()), RunRecord()
        assert [work.existing for work in again.tasks] == [{0}]
        ledger = Ledger(again, outcome)
        for message in (written(1), end()):
            ledger.take(message)
        ledger.finish()
        return outcome.errors

    done = written(0)
    assert done.record
    done.record = replace(done.record, **untrue)  # type: ignore[arg-type]
    Ledger(plan, RunRecord()).take(done)
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
    written: Callable[..., PartDone],
    config_of: Callable[..., JobConfig],
) -> None:
    written(0)
    again = make_plan(config_of())
    assert [work.existing for work in again.tasks] == [{0}]
    ledger = Ledger(again, outcome)
    ledger.take(written(1))
    ledger.take(end())
    ledger.finish()
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
