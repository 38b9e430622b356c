"""Runs a plan to its end: rows of parts in, commits of shards out, and the account of it all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.cluster import gist, running_ray
from pipeline.engine.commit import Committer, Watch
from pipeline.engine.dataset import Pools, Stages, build_dataset, configure_context, summaries
from pipeline.engine.inverter import BATCH
from pipeline.engine.logs import EventLog
from pipeline.engine.memory_kills import MemoryKills, advice
from pipeline.engine.node_report import versions
from pipeline.engine.nodes import nodes_checked
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.progress import STARTING_WORKERS, Progress, doing, showing
from pipeline.engine.prometheus import Meters
from pipeline.engine.ray_output import log_folder
from pipeline.engine.record import RunRecorder
from pipeline.engine.signals import handlers_restored, ignore_further
from pipeline.errors import PipelineError, RequestError
from pipeline.redaction import trace_of
from pipeline.storage import ShardListing, canonical_uri, literal_folder
from pipeline.table import (
    RunRecord,
    is_card_current,
    kept_readme,
    open_table,
    table_stats,
    write_card,
)


class _Interrupted(BaseException):
    """SIGTERM, in the form that unwinds the run."""


def _raise_interrupted(_signum: int, _frame: FrameType | None) -> None:
    ignore_further()
    raise _Interrupted


def _listen() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_interrupted)


@contextmanager
def _stoppable(outcome: RunRecord) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside the block into `outcome.interrupted`.

    Further ones are ignored, until whoever called put its handlers back: the run is ending. One
    that comes while an object is finalized, such as Ray Data's executor, gets no further than
    that: it is noted too, and the run stops at the next part, or at the next signal.
    """
    _listen()
    hook = sys.unraisablehook

    def in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | _Interrupted | SystemExit):
            outcome.interrupted = True
            _listen()
        else:
            hook(unraisable)

    sys.unraisablehook = in_finalizer
    try:
        yield
    except (KeyboardInterrupt, _Interrupted, SystemExit):
        # SystemExit: while Ray starts, SIGTERM finds its handler in place of ours.
        outcome.interrupted = True
    finally:
        ignore_further()
        sys.unraisablehook = hook


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


def _execute(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    stages: Stages,
    watches: tuple[Watch, ...] = (),
) -> None:
    """Run the stages over what the plan has to do."""
    log = EventLog(config.log_format == "json")
    with running_ray(stages.pretended_gpus) as joined, nodes_checked(config, log.notice) as unused:
        outcome.ray_log = log_folder()
        resources = joined.without(unused)
        configure_context(resources.folder, resources.grows)
        doing(STARTING_WORKERS)
        meters = Meters()
        meters.watch()
        committer = Committer(plan, outcome, (*watches, log, meters))
        pools = Pools.of(config, resources, local=not in_cluster())
        dataset = build_dataset(plan, pools, stages)
        with _memory_watched(config, pools, committer, log):
            _take_rows(dataset, plan, committer, outcome)


@contextmanager
def _memory_watched(
    config: JobConfig, pools: Pools, committer: Committer, log: EventLog
) -> Iterator[None]:
    """Tell within the block, and in the outcome, of workers that Ray ends for want of memory."""
    batch = BATCH["cuda" if pools.on_gpu else "cpu"]

    def advise(stage: str) -> str:
        stages = Progress.current.stages if Progress.current else []
        workers = {state.name: state.actors + state.pending for state in stages}
        return advice(stage, workers, config, batch)

    kills = MemoryKills(advise, log.notice)
    committer.explain_deaths = kills.explain_now
    kills.start()
    try:
        yield
    finally:
        for text in kills.stop():
            committer.outcome.warn(text)


def _take_rows(dataset: Any, plan: Plan, committer: Committer, outcome: RunRecord) -> None:
    """Run the stages; commit what comes out of them."""
    try:
        for row in summaries(dataset):
            committer.take(row)
            if Progress.current:
                Progress.current.update()
            if outcome.interrupted:
                raise _Interrupted
            if committer.gave_up:
                break
        doing("committing the last shards")
        try:
            # Before the shards that are missing, of which there may be thousands.
            with _failures(outcome):
                if plan.error:
                    raise plan.error
        finally:
            committer.finish()
    finally:
        committer.abandon()


def run_job(
    config: JobConfig,
    stages: Stages | None = None,
    watches: tuple[Watch, ...] = (),
    *,
    shards: ShardListing | None = None,
) -> RunRecord:
    """Run one job as `run_and_ignore_signals` does, and put the handlers of signals back."""
    with handlers_restored():
        return run_and_ignore_signals(config, stages, watches, shards=shards)


def run_and_ignore_signals(
    config: JobConfig,
    stages: Stages | None = None,
    watches: tuple[Watch, ...] = (),
    *,
    shards: ShardListing | None = None,
) -> RunRecord:
    """Plan, run and account for one job; `watches` hear of every part and shard.

    `shards` is the listing of the input where `check_request` has begun it.

    Raises a `RequestError` for a request that is wrong: before any work, or, where it shows in the
    listing of an input of many thousand shards, when those before are done. What fails later is in
    `RunRecord.errors`: the parts that were committed stay, and the same call finishes the rest.
    Ctrl-C and SIGTERM are ignored when it returns, so that a caller can end undisturbed.
    """
    outcome = RunRecord()
    recorder = None
    log = EventLog(config.log_format == "json")
    with showing(json_lines=log.json_lines) as progress, _stoppable(outcome), _failures(outcome):
        log.event("run_started", input=config.input, table=config.output, versions=versions())
        plan = make_plan(config, shards=shards)
        outcome.listed = plan.found.left_out
        log.model(plan.recipe.treatment)
        progress.follow(outcome, plan.found)
        recorder = RunRecorder(config, plan, outcome)
        try:
            recorder.start()
            _finish(config, plan, outcome, stages or Stages(), (recorder, *watches))
        except RequestError as error:
            recorder.refuse(error)
            raise
        finally:
            outcome.skipped_parts = plan.found.done_parts
            outcome.skipped_samples = plan.found.done_samples
    given = canonical_uri(config.input)
    folder = literal_folder(f"{given}/") or given  # of a pattern the part before it
    outcome.explain_expired(input=folder, output=canonical_uri(config.output))
    if recorder:
        recorder.end()
    level = "error" if outcome.errors else "warning" if outcome.interrupted else "info"
    log.event("run_ended", level, **outcome.to_dict(config.output))
    return outcome


def _finish(
    config: JobConfig,
    plan: Plan,
    outcome: RunRecord,
    stages: Stages,
    watches: tuple[Watch, ...],
) -> None:
    """Do what the table lacks; its card, when nothing is missing."""
    log = EventLog(config.log_format == "json")
    try:
        doing("listing the input")
        to_do = bool(plan.works)
        for watch in watches:
            watch.planned()
        log.event("planned", **plan.found.to_dict())
        if to_do:
            _execute(config, plan, outcome, stages, watches)
        whole = plan.found.complete and not plan.found.limited
        doing("looking for files that no shard has")
        removed = plan.orphans.remove(whole_input=whole)
        if removed:
            log.event("strays_removed", files=removed)
    finally:
        plan.orphans.stop()
    if outcome.exit_code == 0:
        if not outcome.counts.samples + plan.found.done_samples:
            outcome.warn(f"no image was found in '{config.input}'")
        _describe(config.output, outcome, log, changed=bool(outcome.counts.shards or removed))


def _describe(uri: str, outcome: RunRecord, log: EventLog, *, changed: bool) -> None:
    """Write the table's card, unless it says how the table stands."""
    doing("writing the table's card")
    table, listed = open_table(uri), outcome.listed
    if changed or not is_card_current(table, listed):
        stats = table_stats(table.store)
        outcome.means = stats.sums.means()
        if write_card(table, stats, listed) is None:
            log.readme_kept(kept_readme(table))
