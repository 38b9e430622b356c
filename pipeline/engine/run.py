"""Runs a plan to its end: rows of parts in, commits of shards out, and the account of it all."""

from __future__ import annotations

import json
import platform
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.cluster import in_cluster, running_ray
from pipeline.engine.dataset import Pools, Stages, build_dataset, configure_context, summaries
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.progress import Progress, Tally
from pipeline.engine.rows import Row
from pipeline.errors import PipelineError, RequestError
from pipeline.storage import without_secrets
from pipeline.table import PartSummary, open_table, write_card

PACKAGES = ("restyle-pipeline", "ray", "torch", "numpy", "pyarrow", "pillow", "dlib-bin")


@dataclass
class Outcome:
    """How a run ended; `exit_code` 0 is done, 1 is to be run again."""

    tally: Tally
    skipped_parts: int = 0
    skipped_samples: int = 0
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 if every shard is committed."""
        return 1 if self.errors or self.interrupted else 0

    def to_dict(self, table: str) -> dict[str, Any]:
        """The job's last line: what this run did, not what the table holds."""
        tally = self.tally
        seconds = tally.seconds
        return {
            "samples": tally.samples,
            "faces": tally.faces,
            "rejects": tally.rejects,
            "rejects_by_reason": dict(sorted(tally.reasons.items())),
            "parts": tally.parts,
            "skipped_parts": self.skipped_parts,
            "seconds": round(seconds, 2),
            "first_part_seconds": round(tally.first_seconds, 2),
            "images_per_second": round(tally.samples / seconds, 3) if seconds else 0.0,
            "stage_seconds": {k: round(v, 2) for k, v in sorted(tally.stage_seconds.items())},
            "inversion_seconds": round(tally.inversion_seconds, 3),
            "errors": self.errors,
            "exit_code": self.exit_code,
            "table": table,
        }


@dataclass
class _ShardInProgress:
    """The parts of one shard that are in the table, and what it has in all once known."""

    parts: dict[int, PartSummary]
    total: int | None = None
    samples: int = 0  # that its reader saw, once `total` is known

    @property
    def complete(self) -> bool:
        return self.total is not None and len(self.parts) == self.total

    @property
    def accounted(self) -> int:
        """Samples that its parts account for."""
        return sum(summary.samples for summary in self.parts.values())


class Committer:
    """Takes the rows that come out of the stages and commits each shard when it is whole."""

    def __init__(self, plan: Plan, outcome: Outcome) -> None:
        self.plan, self.outcome = plan, outcome
        self.open = {
            shard_id: _ShardInProgress(dict(state.parts)) for shard_id, state in plan.states.items()
        }

    def take(self, row: Row) -> None:
        """Count one row; what comes a second time, after a node was lost, is the same again."""
        shard_id, part = row["shard_id"], int(row["part"])
        if row["kind"] == "failed":
            self.outcome.errors.append(f"shard '{shard_id}', part {part}: {row['error']}")
            return
        shard = self.open.get(shard_id)
        if shard is None or part in shard.parts:
            return
        if row["kind"] == "end":
            shard.total, shard.samples = part, int(row["samples"])
        else:
            shard.parts[part] = PartSummary(**json.loads(row["summary"]))
            self._count(row)
        if shard.complete:
            self._commit(shard_id, shard)

    def _commit(self, shard_id: str, shard: _ShardInProgress) -> None:
        """Commit a whole shard; where that fails it costs this shard, not the others."""
        del self.open[shard_id]
        if shard.accounted != shard.samples:
            self.outcome.errors.append(
                f"shard '{shard_id}': {shard.samples} samples in, {shard.accounted} accounted for"
            )
            return
        whole = self.plan.states[shard_id].shard
        try:
            self.plan.writer.commit_shard(whole, list(shard.parts.values()))
        except PipelineError as error:
            self.outcome.errors.append(f"shard '{shard_id}': {error}")
        else:
            self.outcome.tally.shards += 1

    def _count(self, row: Row) -> None:
        tally = self.outcome.tally
        if not tally.parts:
            tally.first_seconds, tally.first_bytes = tally.seconds, int(row["bytes"])
        tally.last_seconds = tally.seconds
        tally.parts += 1
        tally.samples += int(row["samples"])
        tally.faces += int(row["faces"])
        tally.bytes += int(row["bytes"])
        tally.reasons.update(json.loads(row["reasons"]))
        for stage in ("read", "align", "invert", "write"):
            tally.stage_seconds[stage] += row[f"{stage}_seconds"]
        tally.inversion_seconds += row["inversion_seconds"]

    def finish(self) -> None:
        """Report the shards that never became whole though no stage said why."""
        failed = "".join(self.outcome.errors)
        for shard_id, shard in self.open.items():
            if f"'{shard_id}'" not in failed:
                known = "an unknown number" if shard.total is None else str(shard.total)
                self.outcome.errors.append(
                    f"shard '{shard_id}': {len(shard.parts)} of {known} of parts arrived"
                )


class _Interrupted(BaseException):
    """SIGTERM, in the form that unwinds the run."""


def _raise_interrupted(_signum: int, _frame: FrameType | None) -> None:
    raise _Interrupted


@contextmanager
def _stoppable(outcome: Outcome) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside the block into `outcome.interrupted`."""
    before = signal.signal(signal.SIGTERM, _raise_interrupted)
    try:
        yield
    except (KeyboardInterrupt, _Interrupted, SystemExit):
        # SystemExit: while Ray starts, SIGTERM finds its handler in place of ours.
        outcome.interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(config: JobConfig, plan: Plan, outcome: Outcome, stages: Stages) -> None:
    """Run the stages over what the plan has to do."""
    committer = Committer(plan, outcome)
    with running_ray() as resources:
        configure_context()
        pools = Pools.of(config, resources, local=not in_cluster())
        dataset = build_dataset(plan, pools, stages)
        with Progress(outcome.tally, len(plan.works), plan.bytes_to_do) as progress:
            for row in summaries(dataset):
                committer.take(row)
                progress.update()
    committer.finish()


@contextmanager
def _failures(outcome: Outcome) -> Iterator[None]:
    """Turn what fails inside the block, but for a wrong request, into `outcome.errors`."""
    try:
        yield
    except RequestError:
        raise
    except PipelineError as error:
        outcome.errors.append(str(error))
    except Exception as error:  # noqa: BLE001 - Ray's own failures; run again continues
        # The last line of a remote error is the error, the ones before are its trace.
        gist = without_secrets(str(error)).strip().splitlines()[-1:]
        outcome.errors.append(": ".join([type(error).__name__, *gist]))


def run_job(config: JobConfig, stages: Stages | None = None) -> Outcome:
    """Plan, run and account for one job.

    Raises a `RequestError` for a request that is wrong, before any work. What fails later is in
    `Outcome.errors`: the parts that were committed stay, and the same call finishes the rest.
    """
    started = datetime.now(UTC)
    outcome = Outcome(Tally())
    plan = None
    with _stoppable(outcome), _failures(outcome):
        plan = make_plan(config)
        outcome.skipped_parts, outcome.skipped_samples = plan.done_parts, plan.done_samples
        for state in plan.states.values():
            plan.writer.clear(state)
        if plan.works:
            _execute(config, plan, outcome, stages or Stages())
        if outcome.exit_code == 0:
            write_card(open_table(config.output))
    if plan:
        _record(config, plan, outcome, started)
    return outcome


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        # A cluster's working directory is not an installed package.
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _record(config: JobConfig, plan: Plan, outcome: Outcome, started: datetime) -> None:
    facts = {
        "started": started.isoformat(timespec="seconds"),
        "config": config.model_dump(exclude_none=True),
        "versions": _versions(),
        **outcome.to_dict(plan.writer.store.root),
    }
    try:
        plan.writer.record_run(started, secrets.token_hex(4), facts)
    except PipelineError as error:
        outcome.errors.append(f"the account of this run could not be written: {error}")
