"""Run one job: plan, stages, commits, record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

# First: it sets the environment that Ray reads when it is imported.
from pipeline.engine.cluster import RaySession, summarize_error

# isort: split
from pipeline.choices import Device
from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.capacity import Pools
from pipeline.engine.console.progress import (
    STARTING_WORKERS,
    Progress,
    enter_phase,
    shared_progress,
)
from pipeline.engine.events import EventLog, Listener, log_event, logging_to_stderr
from pipeline.engine.inverter import BATCH
from pipeline.engine.ledger import Ledger
from pipeline.engine.nodes.memory_kills import MemoryKills, advice
from pipeline.engine.nodes.node_checks import nodes_checked
from pipeline.engine.nodes.node_report import versions
from pipeline.engine.pipeline import build_pipeline, run_pipeline
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.prometheus import PrometheusMetrics
from pipeline.engine.ray_callbacks import ray_log_folder, run_settings, untested_ray
from pipeline.engine.record import RunRecorder
from pipeline.engine.shard_source import shard_source
from pipeline.engine.stages import STAGES, StageTypes, build_stages
from pipeline.errors import PipelineError, RequestError
from pipeline.redaction import trace_of
from pipeline.signals import Interrupted, handlers_restored, interruptible
from pipeline.storage import ShardListing, canonical_uri, literal_folder
from pipeline.table import RunRecord, open_table
from pipeline.table.card import is_card_current, write_card
from pipeline.table.forgetting.forgotten import check_finished
from pipeline.table.shard_index import table_stats

Listeners = tuple[Listener, ...]


@contextmanager
def _failures(outcome: RunRecord) -> Iterator[None]:
    """Add errors of the block to `outcome.errors`; a `RequestError` is raised."""
    try:
        yield
    except RequestError:
        raise
    except PipelineError as error:
        outcome.fail(str(error))
    except Exception as error:  # noqa: BLE001 - Ray's own failures; the next run continues
        outcome.fail(summarize_error(error), trace_of(error))


def _notice(text: str) -> None:
    """Log a warning about the cluster."""
    log_event("notice", "warning", line=text, text=text)


def _execute(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    listeners: Listeners = (),
    *,
    stages: StageTypes = STAGES,
    session: RaySession | None = None,
) -> None:
    """Run the stages over the tasks of the plan."""
    with session or RaySession() as joined, nodes_checked(config, _notice) as checks:
        outcome.ray_log = ray_log_folder()
        if untested := untested_ray():
            _notice(untested)
        resources = joined.without(checks.unusable) if checks else joined
        pools = Pools.of(config, resources, local=not in_cluster())
        device: Device = "cuda" if pools.on_gpu else "cpu"
        built = build_stages(stages, plan.job, plan.writer, device)
        metrics = PrometheusMetrics(built)
        ledger = Ledger(plan, outcome, (*listeners, metrics))
        steps = [metrics.observe, *([lambda _: checks.poll()] if checks else [])]
        with (
            run_settings(resources.folder, steps, nodes_may_come=resources.grows),
            _memory_watched(config, device, ledger),
        ):
            enter_phase(STARTING_WORKERS)
            dataset = build_pipeline(shard_source(ledger), built, pools)
            try:
                _take_messages(dataset, ledger)
            finally:
                ledger.abandon()


@contextmanager
def _memory_watched(config: JobConfig, device: Device, ledger: Ledger) -> Iterator[None]:
    """Report workers that Ray kills for lack of memory, at once and in the outcome."""

    def advise(stage: str) -> str:
        stages = Progress.current.stages if Progress.current else []
        workers = {state.name: state.actors + state.pending for state in stages}
        return advice(stage, workers, config, BATCH[device])

    kills = MemoryKills(advise, _notice)
    ledger.explain_deaths = kills.explain_now
    kills.start()
    try:
        yield
    finally:
        for text in kills.stop():
            ledger.outcome.warn(text)


def _take_messages(dataset: object, ledger: Ledger) -> None:
    """Pass the messages of the stages to the ledger, until the last one."""
    for message in run_pipeline(dataset):
        ledger.take(message)
        if ledger.outcome.interrupted:
            raise Interrupted
        if ledger.gave_up:
            break
    enter_phase("committing the last shards")
    try:
        # Before `finish` reports incomplete shards, of which there may be thousands.
        with _failures(ledger.outcome):
            if ledger.plan.error:
                raise ledger.plan.error
    finally:
        ledger.finish()


def run_and_ignore_signals(
    config: JobConfig,
    stages: StageTypes = STAGES,
    listeners: Listeners = (),
    *,
    shards: ShardListing | None = None,
    session: RaySession | None = None,
) -> RunRecord:
    """Plan and run one job; return its record. `listeners` are called during the run.

    `shards` is the listing of the input, if `check_request` has already started it; `session` is
    the Ray to use, which may have begun to start. It is closed at the end.

    Raises a `RequestError` for a wrong request: before any work or, if it shows late in a listing
    of many thousand shards, after the shards before it are done. Later failures are in
    `RunRecord.errors`: committed parts stay, and the same call finishes the rest. Ctrl-C and
    SIGTERM are ignored after the return, so that the caller can end undisturbed.
    """
    outcome, session = RunRecord(), session or RaySession()
    listeners = (EventLog(), *listeners)

    def interrupt() -> None:
        outcome.interrupted = True

    json_lines = config.log_format == "json"
    with logging_to_stderr(json_lines=json_lines):
        with (
            shared_progress(json_lines=json_lines) as progress,
            closing(session),
            interruptible(interrupt),
            _failures(outcome),
        ):
            log_event("run_started", input=config.input, table=config.output, versions=versions())
            plan = make_plan(config, shards=shards)
            outcome.listed = plan.backlog.left_out
            treatment = plan.job.treatment
            log_event("model", line=treatment, treatment=treatment)
            progress.follow(outcome, plan.backlog)
            recorder = RunRecorder(config, plan, outcome)
            listeners = (recorder, *listeners)
            try:
                recorder.start()
                # A forget that began after the plan was made finds the record just written.
                check_finished(plan.writer.store)
                _finish(config, plan, outcome, listeners, stages, session)
            except RequestError as error:
                recorder.refuse(error)
                raise
            finally:
                outcome.skipped_parts = plan.backlog.done_parts
                outcome.skipped_samples = plan.backlog.done_samples
        outcome.explain_expired(input=_folder_of(config), output=canonical_uri(config.output))
        for listener in listeners:
            listener.on_end(outcome, config.output)
    return outcome


# The same, and afterwards the signal handlers are as before.
run_job = handlers_restored()(run_and_ignore_signals)


def _folder_of(config: JobConfig) -> str:
    """Return the URI of the input; of a pattern, the part before its first wildcard."""
    given = canonical_uri(config.input)
    return literal_folder(f"{given}/") or given


def _finish(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    listeners: Listeners,
    stages: StageTypes,
    session: RaySession,
) -> None:
    """Process the missing parts; write the table's card if it is complete."""
    try:
        enter_phase("listing the input")
        to_do = bool(plan.tasks)
        for listener in listeners:
            listener.on_plan(plan.backlog)
        if to_do:
            _execute(config, plan, outcome, listeners, stages=stages, session=session)
        whole = plan.backlog.complete and not plan.backlog.limited
        enter_phase("looking for orphaned files")
        removed = plan.orphans.remove(whole_input=whole)
        if removed:
            log_event("strays_removed", files=removed)
    finally:
        plan.orphans.stop()
    if outcome.exit_code == 0:
        if not outcome.counts.samples + plan.backlog.done_samples:
            outcome.warn(f"no image was found in '{config.input}'")
        _describe(config.output, outcome, changed=bool(outcome.counts.shards or removed))


def _describe(uri: str, outcome: RunRecord, *, changed: bool) -> None:
    """Write the table's card, unless it is up to date."""
    enter_phase("writing the table's card")
    table, listed = open_table(uri), outcome.listed
    if changed or not is_card_current(table, listed):
        stats = table_stats(table.store)
        outcome.means = stats.sums.means(table.spec.best_alone)
        if why := write_card(table, stats, listed):
            log_event("readme_kept", "warning", line=why, reason=why)
