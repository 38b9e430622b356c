"""Runs a plan to its end: rows of parts in, commits of shards out, and the account of it all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from types import FrameType

from pipeline.config import JobConfig
from pipeline.engine.address import in_cluster
from pipeline.engine.cluster import gist, running_ray
from pipeline.engine.commit import Committer, Watch
from pipeline.engine.dataset import Pools, Stages, build_dataset, configure_context, summaries
from pipeline.engine.logs import EventLog
from pipeline.engine.outcome import Outcome
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.progress import Progress
from pipeline.engine.prometheus import Meters
from pipeline.engine.record import RunRecord, versions
from pipeline.engine.sharing import sharing_checked
from pipeline.engine.tally import Tally
from pipeline.errors import PipelineError, RequestError
from pipeline.redaction import trace_of
from pipeline.storage import Shard
from pipeline.table import Totals, is_card_current, kept_readme, open_table, write_card


class _Interrupted(BaseException):
    """SIGTERM, in the form that unwinds the run."""


def _raise_interrupted(_signum: int, _frame: FrameType | None) -> None:
    raise _Interrupted


@contextmanager
def _stoppable(outcome: Outcome) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside the block into `outcome.interrupted`.

    One that comes while an object is finalized, such as Ray Data's executor, gets no further than
    that: it is noted too, and the run stops at the next part.
    """
    before = signal.signal(signal.SIGTERM, _raise_interrupted)
    hook = sys.unraisablehook

    def in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | _Interrupted | SystemExit):
            outcome.interrupted = True
        else:
            hook(unraisable)

    sys.unraisablehook = in_finalizer
    try:
        yield
    except (KeyboardInterrupt, _Interrupted, SystemExit):
        # SystemExit: while Ray starts, SIGTERM finds its handler in place of ours.
        outcome.interrupted = True
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _failures(outcome: Outcome) -> Iterator[None]:
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
    outcome: Outcome,
    stages: Stages,
    watches: tuple[Watch, ...] = (),
) -> None:
    """Run the stages over what the plan has to do."""
    log = EventLog(config.log_format == "json")
    with running_ray(stages.pretended_gpus) as resources, sharing_checked(config):
        configure_context()
        meters = Meters()
        meters.watch()
        committer = Committer(plan, outcome, (*watches, log, meters))
        pools = Pools.of(config, resources, local=not in_cluster())
        dataset = build_dataset(plan, pools, stages)
        try:
            with Progress(outcome.tally, plan.found, log) as progress:
                for row in summaries(dataset):
                    committer.take(row)
                    progress.update()
                    if outcome.interrupted:
                        raise _Interrupted
                    if committer.gave_up:
                        break
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
    shards: Iterator[Shard] | None = None,
) -> Outcome:
    """Plan, run and account for one job; `watches` hear of every part and shard.

    `shards` is the listing of the input where `check_request` has begun it.

    Raises a `RequestError` for a request that is wrong: before any work, or, where it shows in the
    listing of an input of many thousand shards, when those before are done. What fails later is in
    `Outcome.errors`: the parts that were committed stay, and the same call finishes the rest.
    """
    started = datetime.now(UTC)
    outcome = Outcome(Tally())
    record = None
    log = EventLog(config.log_format == "json")
    with _stoppable(outcome), _failures(outcome):
        log.event("run_started", input=config.input, table=config.output, versions=versions())
        plan = make_plan(config, shards=shards)
        log.model(plan.recipe.treatment)
        record = RunRecord(config, plan, outcome, started)
        try:
            record.start()
            _finish(config, plan, outcome, stages or Stages(), (record, *watches))
        except RequestError as error:
            record.refuse(error)
            raise
        finally:
            outcome.skipped_parts = plan.found.done_parts
            outcome.skipped_samples = plan.found.done_samples
    if record:
        record.end()
    level = "error" if outcome.errors else "warning" if outcome.interrupted else "info"
    log.event("run_ended", level, **outcome.to_dict(config.output))
    return outcome


def _finish(
    config: JobConfig,
    plan: Plan,
    outcome: Outcome,
    stages: Stages,
    watches: tuple[Watch, ...],
) -> None:
    """Do what the table lacks; its card, when nothing is missing."""
    log = EventLog(config.log_format == "json")
    try:
        to_do = bool(plan.works)
        for watch in watches:
            watch.planned()
        log.event("planned", **asdict(plan.found))
        if to_do:
            _execute(config, plan, outcome, stages, watches)
        whole = plan.found.complete and not plan.found.limited
        removed = plan.strays.remove(whole_input=whole)
        if removed:
            log.event("strays_removed", files=removed)
    finally:
        plan.strays.stop()
    if outcome.exit_code == 0:
        _describe(config.output, outcome, log, changed=bool(outcome.tally.shards or removed))


def _describe(uri: str, outcome: Outcome, log: EventLog, *, changed: bool) -> None:
    """Write the table's card, unless it says how the table stands."""
    table = open_table(uri)
    if changed or not is_card_current(table):
        totals = Totals.of(table.store)
        outcome.means = totals.figures.means()
        if write_card(table, totals) is None:
            log.readme_kept(kept_readme(table))
