from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.engine import record, run
from pipeline.engine.console.summary import print_outcome
from pipeline.engine.events import EventLog, log_event, logging_to_stderr
from pipeline.engine.inverter import BATCH
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import Message, PartDone
from pipeline.engine.nodes import node_report
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.run import run_job
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import list_shards
from pipeline.table import Counts, RunRecord, open_table
from pipeline.table import runs as runs_module
from pipeline.table.runs import WRITE_EVERY_S
from tests.engine.conftest import end, failure, is_committed

KINDS = ("latents", "rejects")


def test_a_dashboards_address_is_no_cluster(
    config_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    with pytest.raises(
        ConfigError, match="is a dashboard's URL: submit the job to it with `ray job submit"
    ):
        run_job(config)
    assert not Path(config.output).exists(), "nothing is begun"


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_the_listing_error_precedes_incomplete_shards(
    plan: Plan,
    outcome: RunRecord,
    config_of: Callable[..., JobConfig],
    without_ray: Callable[[list[Message]], None],
) -> None:
    assert plan.tasks
    plan.error = StorageError("SlowDown")
    without_ray([])
    run._execute(config_of(), plan, outcome)
    missing = "shard 'files-00000': 0 of an unknown number of parts finished"
    assert outcome.errors == ["SlowDown", missing]


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_late_wrong_request_waits_for_commits(
    plan: Plan,
    outcome: RunRecord,
    written: Callable[..., PartDone],
    config_of: Callable[..., JobConfig],
    without_ray: Callable[[list[Message]], None],
) -> None:
    plan.error = InputError("two shards have one id")
    without_ray([written(0), written(1), end()])
    with pytest.raises(InputError):
        run._execute(config_of(), plan, outcome)
    assert is_committed(plan)
    assert outcome.errors == []


def test_a_run_that_changes_nothing_writes_no_card(
    ledger: Ledger,
    written: Callable[..., PartDone],
    config_of: Callable[..., JobConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for message in (written(0), written(1), end()):
        ledger.take(message)
    ledger.finish()
    table = open_table(config_of().output)
    assert not table.store.exists("README.md"), "as a run that is killed after its last commit"
    assert run_job(config_of()).means is not None
    card = table.store.info("README.md")
    monkeypatch.delattr(run, "table_stats")
    assert run_job(config_of()).means is None
    assert table.store.info("README.md") == card


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_run_says_once_that_a_readme_stays(
    ledger: Ledger,
    written: Callable[..., PartDone],
    config_of: Callable[..., JobConfig],
    capsys: pytest.CaptureFixture[str],
    log_format: str,
) -> None:
    for message in (written(0), written(1), end()):
        ledger.take(message)
    ledger.finish()
    config = config_of(log_format=log_format)
    readme = Path(config.output, "README.md")
    assert run_job(config).exit_code == 0
    readme.write_text("mine")
    late = Path(config.output, "latents", "files-00000-00007.parquet")
    late.write_bytes(late.with_name("files-00000-00001.parquet").read_bytes())
    capsys.readouterr()
    assert run_job(config).exit_code == run_job(config).exit_code == 0, "only one changes anything"
    assert capsys.readouterr().err.count("README.md' is not the card that this job writes") == 1
    assert readme.read_text() == "mine"


def test_only_a_real_run_removes_late_files(
    ledger: Ledger, written: Callable[..., PartDone], config_of: Callable[..., JobConfig]
) -> None:
    for message in (written(0), written(1), end()):
        ledger.take(message)
    ledger.finish()
    late = [Path(config_of().output, kind, "files-00000-00007.parquet") for kind in KINDS]
    for file in late:
        file.write_bytes(file.with_name("files-00000-00001.parquet").read_bytes())
    assert list(make_plan(config_of(), dry_run=True).tasks) == []
    assert all(file.exists() for file in late)
    assert run_job(config_of()).exit_code == 0
    assert not any(file.exists() for file in late)
    open_table(config_of().output).verify()


def test_a_shrunk_folder_keeps_each_face_once(
    config_of: Callable[..., JobConfig], images: Path
) -> None:
    config = config_of(files_per_shard=2)
    plan = make_plan(config)
    for work in plan.tasks:
        rejects = [
            {"key": name, "face_index": None, "source_uri": f"{images}/x", "source_sha256": ""}
            | {"reason": "no_face", "detail": ""}
            for name in work.shard.names
        ]
        part = plan.writer.write_part(work.shard, 0, samples=2, latents=[], rejects=rejects)
        plan.writer.commit_shard(work.shard, [part])
    run_job(config)
    for image in sorted(images.iterdir())[2:]:
        image.unlink()
    assert run_job(config).exit_code == 0
    assert open_table(config.output).verify()["samples"] == 2
    assert "2 images in 1 shard gave 0 codes" in Path(config.output, "README.md").read_text()
    assert open_table(config.output).sql("SELECT key FROM rejects").shape[0] == 2


def test_the_last_line_has_the_documented_keys() -> None:
    documented = "samples faces rejects parts skipped_parts seconds images_per_second table"
    line = RunRecord(Counts(samples=3), skipped_parts=2).to_dict("/table")
    assert set(documented.split()) <= line.keys()
    assert (line["samples"], line["skipped_parts"], line["table"]) == (3, 2, "/table")
    json.dumps(line, allow_nan=False)


def test_a_signal_while_planning_is_an_interrupted_run(
    config_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "make_plan", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run_job(config_of())
    assert (outcome.interrupted, outcome.exit_code) == (True, 1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_storage_error_while_planning_is_retryable(
    config_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> Plan:
        raise StorageError("cannot list 's3://bucket': timed out")

    monkeypatch.setattr(run, "make_plan", unreachable)
    outcome = run_job(config_of())
    assert outcome.errors == ["cannot list 's3://bucket': timed out"]
    assert outcome.exit_code == 1


def test_a_wrong_request_is_raised(config_of: Callable[..., JobConfig]) -> None:
    with pytest.raises(InputError):
        run_job(config_of(input="/nowhere"))


class Finalized:
    def __del__(self) -> None:
        raise KeyboardInterrupt


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ctrl_c_inside_a_finalizer_is_not_lost(
    config_of: Callable[..., JobConfig],
    without_ray: Callable[[list[Message]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_ray([])

    def messages(_: object) -> Iterator[Message]:
        Finalized()
        yield failure(0, "align", OSError("x"))
        raise AssertionError("the run continues")

    monkeypatch.setattr(run, "run_pipeline", messages)
    outcome = run_job(config_of())
    assert outcome.interrupted
    assert [error for error in outcome.errors if "OSError: x" not in error] == []
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_package_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_report, "PACKAGES", ("no-such-package", "numpy"))
    assert node_report.versions().keys() == {"python", "numpy"}


@pytest.mark.parametrize(("limit", "left"), [(None, 3), (99, 3), (3, 4)])
def test_a_slice_past_the_folders_end_is_removed(
    config_of: Callable[..., JobConfig], images: Path, limit: int | None, left: int
) -> None:
    config = config_of(limit=limit, files_per_shard=1)
    writer = make_plan(config).writer
    for item in list_shards(config.input, files_per_shard=1):
        source = dict.fromkeys(("source_uri", "source_sha256", "detail"), "")
        reject = {"key": item.names[0], "face_index": None, "reason": "no_face", **source}
        part = writer.write_part(item, 0, samples=1, latents=[], rejects=[reject])
        writer.commit_shard(item, [part])
    max(images.iterdir()).unlink()
    assert run_job(config).exit_code == 0
    assert len(writer.store.names("_shards/")) == left


def runs(config: JobConfig) -> list[dict[str, object]]:
    store = open_table(config.output).store
    return [json.loads(store.get(name)) for name in store.names("_runs/")]


def test_a_run_is_on_record_from_its_start(
    config_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    observed: list[dict[str, object]] = []
    monkeypatch.setattr(run, "_execute", lambda *_, **__: observed.extend(runs(config)))
    run_job(config)
    (started,), (ended,) = observed, runs(config)
    assert (started["exit_code"], ended["exit_code"]) == (None, 0)
    assert started["versions"] == ended["versions"]
    assert started["found"] == {
        **{"shards": 1, "bytes": ended["found"]["bytes"], "complete": True},  # type: ignore[index]
        **{"done_shards": 0, "done_bytes": 0, "done_samples": 0, "done_parts": 0},
        **{"images": 4, "uncounted_bytes": 0, "uncounted_done": 0},
        **{"limited": False, "limit": None, "chosen": False},
        "left_out": {},
    }


def test_the_summary_names_the_best_steps_columns(
    config_of: Callable[..., JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [0.2, 0.1]
    means = dict.fromkeys(("l2", "psnr", "lpips", "id_similarity"), steps)
    print_outcome(config_of(), RunRecord(means=means), command=["jobs/it.py"])  # type: ignore[arg-type]
    result = " ".join(capsys.readouterr().err.split())
    assert "0.1000" in result
    assert "the table's columns of these names are of each face's best step" in result


def test_a_run_records_its_resolved_settings(
    plan: Plan, config_of: Callable[..., JobConfig], outcome: RunRecord
) -> None:
    record.RunRecorder(config_of(), plan, outcome).start()
    (account,) = runs(config_of())
    result = account["config"]
    assert isinstance(result, dict)
    assert result.keys() == JobConfig.model_fields.keys()
    assert (result["steps"], result["identity"], result["prealigned"]) == (5, "none", False)
    assert result["batch_size"] in BATCH.values()
    assert result["bootstrap"] is result["iterations"] is None, "of no use here"


def test_a_running_job_renews_its_record(
    plan: Plan,
    config_of: Callable[..., JobConfig],
    written: Callable[..., PartDone],
    outcome: RunRecord,
) -> None:
    account = record.RunRecorder(config_of(), plan, outcome)
    account.start()
    ledger = Ledger(plan, outcome, (account,))
    ledger.take(written(0))
    assert [item["parts"] for item in runs(config_of())] == [0], "not with every part"
    account.file._written -= WRITE_EVERY_S
    ledger.take(written(1))
    assert [(item["parts"], item["exit_code"]) for item in runs(config_of())] == [(2, None)]
    account.on_end(outcome, "")
    assert [item["exit_code"] for item in runs(config_of())] == [0]


def test_an_unexpected_failure_is_recorded_with_trace(
    plan: Plan, config_of: Callable[..., JobConfig], outcome: RunRecord
) -> None:
    account = record.RunRecorder(config_of(), plan, outcome)
    ledger = Ledger(plan, outcome, (account,))
    with pytest.raises(ZeroDivisionError) as error:
        divmod(1, 0)
    for part in (0, 1):
        ledger.take(failure(part, "invert", error.value))
    account.on_end(outcome, "")
    (ended,) = runs(config_of())
    (trace,) = ended["traces"]  # type: ignore[misc]
    assert "ZeroDivisionError: " in trace.splitlines()[-1]
    assert "test_run.py" in trace
    assert "traces" not in outcome.to_dict(config_of().output), "the last line stays short"


def test_a_wrong_request_is_recorded_with_its_code(
    config_of: Callable[..., JobConfig], tmp_path: Path
) -> None:
    plan = make_plan(config_of())
    (work,) = plan.tasks
    shard = replace(work.shard, uri=str(tmp_path / "elsewhere"))
    reject = {"key": "a.jpg", "face_index": None, "source_uri": "", "source_sha256": ""}
    rejects = [reject | {"reason": "no_face", "detail": ""}]
    part = plan.writer.write_part(shard, 0, samples=1, latents=[], rejects=rejects)
    plan.writer.commit_shard(shard, [part])
    with pytest.raises(InputError, match="choose another output"):
        run_job(config_of())
    (account,) = runs(config_of())
    assert account["exit_code"] == 2
    assert "choose another output" in str(account["errors"])


def test_missed_identities_and_profiles_are_reported(
    plan: Plan,
    config_of: Callable[..., JobConfig],
    written: Callable[..., PartDone],
    outcome: RunRecord,
) -> None:
    account = record.RunRecorder(config_of(), plan, outcome)
    ledger = Ledger(plan, outcome, (account,))
    first = written(0, identity_missed=2, icc_ignored=4)
    for message in (first, written(1, identity_missed=1, icc_ignored=1), end()):
        ledger.take(message)
    ledger.finish()
    account.on_end(outcome, "")
    assert outcome.to_dict("/table")["identity_missed"] == 3
    assert [item["identity_missed"] for item in runs(config_of())] == [3]
    assert outcome.to_dict("/table")["icc_ignored"] == 5
    assert [item["icc_ignored"] for item in runs(config_of())] == [5]


def test_of_very_many_errors_the_first_are_kept(
    outcome: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "MAX_ERRORS", 2)
    for number in range(5):
        outcome.fail(f"error {number}")
    line = outcome.to_dict("/table")
    assert (line["errors"], line["more_errors"]) == (["error 0", "error 1"], 3)
    assert outcome.exit_code == 1


def test_events_are_json_lines_without_credentials(
    plan: Plan,
    outcome: RunRecord,
    written: Callable[..., PartDone],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    ledger = Ledger(plan, outcome, (EventLog(),))
    with logging_to_stderr(json_lines=True):
        ledger.take(written(0))
        ledger.take(failure(1, "read", OSError("key planted-secret is wrong")))
        ledger.take(written(1))
        ledger.finish()
    done, failed, again = map(json.loads, capfd.readouterr().err.splitlines())
    assert (done["event"], done["shard"], done["part"]) == ("part_done", "files-00000", 0)
    assert (done["samples"], done["rejects"]) == (2, {"no_face": 2})
    assert (failed["event"], failed["level"]) == ("part_failed", "error")
    assert "is wrong" in failed["error"]
    assert "planted" not in failed["error"]
    assert again["event"] == "part_done"
    assert datetime.fromisoformat(done["time"]).tzinfo is not None


def test_without_the_request_nothing_is_logged(
    plan: Plan,
    outcome: RunRecord,
    written: Callable[..., PartDone],
    capfd: pytest.CaptureFixture[str],
) -> None:
    ledger = Ledger(plan, outcome, (EventLog(),))
    with logging_to_stderr(json_lines=False):
        ledger.take(written(0))
    assert capfd.readouterr().err == ""


def test_a_level_quietens_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("pipeline")
    with logging_to_stderr(json_lines=True):
        log_event("x")
        logging.getLogger("pipeline.table").warning("in %s", "words")
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert (first["event"], second["event"], second["text"]) == ("x", "log", "in words")
    library.setLevel(logging.ERROR)
    try:
        with logging_to_stderr(json_lines=False):
            log_event("notice", "warning", line="not shown")
            log_event("notice", "error", line="shown")
    finally:
        library.setLevel(logging.NOTSET)
    assert capfd.readouterr().err == "shown\n"
