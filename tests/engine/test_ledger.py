"""Check what the ledger counts and commits."""

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


def test_a_shard_commits_with_parts_in_any_order(
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


def test_a_shard_end_is_not_a_repeated_part(
    outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    """A shard that is cut by a limit may have more parts than its end says."""
    for message in (written(0), written(1), end(parts=1, samples=2)):
        ledger.take(message)
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 2 of 1 parts finished"]


def test_a_part_that_never_arrives_is_reported(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(0), end()):
        ledger.take(message)
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of 2 parts finished"]
    assert outcome.exit_code == 1
    assert not is_committed(plan)


def test_a_shard_whose_reader_never_ends_is_reported(
    outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    ledger.take(written(0))
    ledger.finish()
    assert outcome.errors == ["shard 'files-00000': 1 of an unknown number of parts finished"]


def test_a_failed_part_is_reported_once(
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
def test_a_success_resets_the_failures_in_a_row(
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


def test_a_short_outage_does_not_end_the_run(ledger: Ledger) -> None:
    for part in range(100):
        ledger.take(expired(part))
    assert not ledger.gave_up


def test_samples_that_no_part_accounts_for_are_reported(
    plan: Plan, outcome: RunRecord, ledger: Ledger, written: Callable[..., PartDone]
) -> None:
    for message in (written(0), written(1), end(samples=5)):
        ledger.take(message)
    assert outcome.errors == ["shard 'files-00000': 5 samples were read, but its parts hold 4"]
    assert not is_committed(plan)


def test_a_failed_commit_costs_only_its_shard(
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
    """Write the index after each part; return a function that lists its files."""
    monkeypatch.setattr(part_index, "PARTS_INDEXED_AT_ONCE", 1)
    return lambda: plan.writer.store.names("_index/parts/")


def test_parts_are_indexed_until_the_commit(
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


def test_a_part_without_etags_is_not_indexed(
    ledger: Ledger, written: Callable[..., PartDone], indexed: Callable[[], list[str]]
) -> None:
    done = written(0)
    assert done.record
    ledger.take(replace(done, record=replace(done.record, rejects_etag="")))
    assert indexed() == []


@pytest.mark.parametrize("untrue", [{"faces": 1}, {"samples": 1}])
def test_a_failed_commit_drops_the_shards_index(
    plan: Plan,
    written: Callable[..., PartDone],
    indexed: Callable[[], list[str]],
    config_of: Callable[..., JobConfig],
    untrue: dict[str, int],
) -> None:
    """A wrong index fails one run; the next run is right."""

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
    assert re.search(
        "cannot be committed: another run|4 samples were read, but its parts hold 3", error
    )
    assert indexed() == []
    for kind in ("latents", "rejects"):
        plan.writer.store.remove(f"{kind}/files-00000-00001.parquet")
    assert resume() == []
    assert is_committed(plan)


def test_parts_of_an_earlier_run_are_kept(
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
    outcome.fail("shard 'a': 1 of 2 parts finished")
    outcome.explain_expired(input="s3://in", output="s3://out/table")
    assert len(outcome.errors) == 1, "nothing expired"
    for uri in ("s3://in/a.tar", "s3://out/table-2/x"):
        outcome.fail(f"read: cannot read '{uri}': {CREDENTIALS_EXPIRED} (ExpiredToken): renew")
    outcome.explain_expired(input="s3://in", output="s3://out/table")
    assert outcome.errors[0].startswith("credentials expired for the input 's3://in': get new ones")
    assert outcome.exit_code == 1
