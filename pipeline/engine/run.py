"""Run one job: plan, stages, commits, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.choices import Device
from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.capacity import Pools
from pipeline.engine.cluster import gist, running_ray
from pipeline.engine.console import Console
from pipeline.engine.events import EventLog, Listener, log_event, logging_to_stderr
from pipeline.engine.inverter import BATCH
from pipeline.engine.ledger import Ledger
from pipeline.engine.memory_kills import MemoryKills, advice
from pipeline.engine.node_report import versions
from pipeline.engine.nodes import nodes_checked
from pipeline.engine.pipeline import build_pipeline, run_pipeline
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.progress import STARTING_WORKERS, Progress, doing, showing
from pipeline.engine.prometheus import PrometheusMetrics
from pipeline.engine.ray_callbacks import ray_log_folder, run_settings, untested_ray
from pipeline.engine.record import RunRecorder
from pipeline.engine.shard_source import shard_source
from pipeline.engine.stages import STAGES, JobStage
from pipeline.errors import PipelineError, RequestError
from pipeline.redaction import trace_of
from pipeline.signals import Interrupted, handlers_restored, interruptible
from pipeline.storage import ShardListing, canonical_uri, literal_folder
from pipeline.table import (
    RunRecord,
    is_card_current,
    kept_readme,
    open_table,
    table_stats,
    write_card,
)

StageTypes = Sequence[type[JobStage]]
Listeners = tuple[Listener, ...]


@contextmanager
def _failures(outcome: RunRecord) -> Iterator[None]:
    """Turn what fails inside the block, but for a wrong request, into `outcome.errors`."""
    try:
        yield
    except RequestError:
        raise
    except PipelineError as error:
        outcome.fail(str(error))
    except Exception as error:  # noqa: BLE001 - Ray's own failures; run again continues
        outcome.fail(gist(error), trace_of(error))


def _notice(text: str) -> None:
    """Log something of the cluster that changes what is used."""
    log_event("notice", "warning", line=text, text=text)


def _execute(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    listeners: Listeners = (),
    *,
    stages: StageTypes = STAGES,
    pretended_gpus: int | None = None,
) -> None:
    """Run the stages over what the plan has to do."""
    with running_ray(pretended_gpus) as joined, nodes_checked(config, _notice) as checks:
        outcome.ray_log = ray_log_folder()
        if untested := untested_ray():
            _notice(untested)
        resources = joined.without(checks.unused) if checks else joined
        pools = Pools.of(config, resources, local=not in_cluster())
        device: Device = "cuda" if pools.on_gpu else "cpu"
        built = [stage.of(plan.recipe, plan.writer, device) for stage in stages]
        metrics = PrometheusMetrics(built)
        ledger = Ledger(plan, outcome, (*listeners, metrics))
        steps = [metrics.observe, *([lambda _: checks.poll()] if checks else [])]
        with (
            run_settings(resources.folder, steps, nodes_may_come=resources.grows),
            _memory_watched(config, pools, ledger),
        ):
            doing(STARTING_WORKERS)
            dataset = build_pipeline(shard_source(ledger), built, pools)
            try:
                _book(dataset, ledger)
            finally:
                ledger.abandon()


@contextmanager
def _memory_watched(config: JobConfig, pools: Pools, ledger: Ledger) -> Iterator[None]:
    """Tell within the block, and in the outcome, of workers that Ray ends for want of memory."""
    batch = BATCH["cuda" if pools.on_gpu else "cpu"]

    def advise(stage: str) -> str:
        stages = Progress.current.stages if Progress.current else []
        workers = {state.name: state.actors + state.pending for state in stages}
        return advice(stage, workers, config, batch)

    kills = MemoryKills(advise, _notice)
    ledger.explain_deaths = kills.explain_now
    kills.start()
    try:
        yield
    finally:
        for text in kills.stop():
            ledger.outcome.warn(text)


def _book(dataset: object, ledger: Ledger) -> None:
    """Book what comes out of the stages until nothing comes any more."""
    for message in run_pipeline(dataset):
        ledger.take(message)
        if ledger.outcome.interrupted:
            raise Interrupted
        if ledger.gave_up:
            break
    doing("committing the last shards")
    try:
        # Before the shards that are missing, of which there may be thousands.
        with _failures(ledger.outcome):
            if ledger.plan.error:
                raise ledger.plan.error
    finally:
        ledger.finish()


def run_job(
    config: JobConfig,
    stages: StageTypes = STAGES,
    listeners: Listeners = (),
    *,
    shards: ShardListing | None = None,
    pretended_gpus: int | None = None,
) -> RunRecord:
    """Run one job as `run_and_ignore_signals` does, and put the handlers of signals back."""
    with handlers_restored():
        return run_and_ignore_signals(
            config, stages, listeners, shards=shards, pretended_gpus=pretended_gpus
        )


def run_and_ignore_signals(
    config: JobConfig,
    stages: StageTypes = STAGES,
    listeners: Listeners = (),
    *,
    shards: ShardListing | None = None,
    pretended_gpus: int | None = None,
) -> RunRecord:
    """Plan and run one job, and return how it ended; `listeners` follow it.

    `shards` is the listing of the input where `check_request` has begun it; `pretended_gpus` is how
    many GPUs a local Ray offers, whatever the machine has.

    Raises a `RequestError` for a request that is wrong: before any work, or, where it shows in the
    listing of an input of many thousand shards, when those before are done. What fails later is in
    `RunRecord.errors`: the parts that were committed stay, and the same call finishes the rest.
    Ctrl-C and SIGTERM are ignored when it returns, so that a caller can end undisturbed.
    """
    outcome = RunRecord()
    listeners = (EventLog(), Console(), *listeners)

    def interrupt() -> None:
        outcome.interrupted = True

    json_lines = config.log_format == "json"
    with logging_to_stderr(json_lines=json_lines):
        with (
            showing(json_lines=json_lines) as progress,
            interruptible(interrupt),
            _failures(outcome),
        ):
            log_event("run_started", input=config.input, table=config.output, versions=versions())
            plan = make_plan(config, shards=shards)
            outcome.listed = plan.found.left_out
            treatment = plan.recipe.treatment
            log_event("model", line=treatment, treatment=treatment)
            progress.follow(outcome, plan.found)
            recorder = RunRecorder(config, plan, outcome)
            listeners = (recorder, *listeners)
            try:
                recorder.start()
                _finish(config, plan, outcome, listeners, stages, pretended_gpus)
            except RequestError as error:
                recorder.refuse(error)
                raise
            finally:
                outcome.skipped_parts = plan.found.done_parts
                outcome.skipped_samples = plan.found.done_samples
        outcome.explain_expired(input=_folder_of(config), output=canonical_uri(config.output))
        for listener in listeners:
            listener.on_end(outcome, config.output)
    return outcome


def _folder_of(config: JobConfig) -> str:
    """Return the URI of the input, of a pattern the part before it."""
    given = canonical_uri(config.input)
    return literal_folder(f"{given}/") or given


def _finish(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    listeners: Listeners,
    stages: StageTypes,
    pretended_gpus: int | None,
) -> None:
    """Do what the table lacks; write its card when nothing is missing."""
    try:
        doing("listing the input")
        to_do = bool(plan.tasks)
        for listener in listeners:
            listener.on_plan(plan.found)
        if to_do:
            _execute(config, plan, outcome, listeners, stages=stages, pretended_gpus=pretended_gpus)
        whole = plan.found.complete and not plan.found.limited
        doing("looking for files that no shard has")
        removed = plan.orphans.remove(whole_input=whole)
        if removed:
            log_event("strays_removed", files=removed)
    finally:
        plan.orphans.stop()
    if outcome.exit_code == 0:
        if not outcome.counts.samples + plan.found.done_samples:
            outcome.warn(f"no image was found in '{config.input}'")
        _describe(config.output, outcome, changed=bool(outcome.counts.shards or removed))


def _describe(uri: str, outcome: RunRecord, *, changed: bool) -> None:
    """Write the table's card, unless it says how the table stands."""
    doing("writing the table's card")
    table, listed = open_table(uri), outcome.listed
    if changed or not is_card_current(table, listed):
        stats = table_stats(table.store)
        outcome.means = stats.sums.means()
        if write_card(table, stats, listed) is None:
            why = kept_readme(table)
            log_event("readme_kept", "warning", line=why, reason=why)
