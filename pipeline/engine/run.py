"""Runs a plan to its end: rows of parts in, commits of shards out, and the account of it all."""

from __future__ import annotations

import json
import platform
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from types import FrameType
from typing import Any

from pipeline.config import JobConfig
from pipeline.engine.cluster import in_cluster, running_ray
from pipeline.engine.dataset import Pools, build_dataset, configure_context, summaries
from pipeline.engine.plan import Plan, make_plan
from pipeline.engine.progress import Progress, Tally
from pipeline.engine.rows import Row
from pipeline.errors import PipelineError
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
            "images_per_second": round(tally.samples / seconds, 3) if seconds else 0.0,
            "stage_seconds": {k: round(v, 2) for k, v in sorted(tally.stage_seconds.items())},
            "errors": self.errors,
            "exit_code": self.exit_code,
            "table": table,
        }


@dataclass
class _ShardInProgress:
    """The parts of one shard that are in the table, and how many it has in all once known."""

    parts: dict[int, PartSummary]
    total: int | None = None

    @property
    def complete(self) -> bool:
        return self.total is not None and len(self.parts) == self.total


class Committer:
    """Takes the rows that come out of the stages and commits each shard when it is whole."""

    def __init__(self, plan: Plan, outcome: Outcome) -> None:
        self.plan, self.outcome = plan, outcome
        self.open = {
            shard_id: _ShardInProgress(dict(state.parts)) for shard_id, state in plan.states.items()
        }

    def take(self, row: Row) -> None:
        """Count one row; a part that comes a second time replaces its first."""
        shard_id = row["shard_id"]
        if row["kind"] == "failed":
            self.outcome.errors.append(f"shard '{shard_id}', part {row['part']}: {row['error']}")
            return
        shard = self.open[shard_id]
        if row["kind"] == "end":
            shard.total = int(row["part"])
        else:
            shard.parts[int(row["part"])] = PartSummary(**json.loads(row["summary"]))
            self._count(row)
        if shard.complete:
            self.plan.writer.commit_shard(
                self.plan.states[shard_id].shard, list(shard.parts.values())
            )
            self.outcome.tally.shards += 1
            del self.open[shard_id]

    def _count(self, row: Row) -> None:
        tally = self.outcome.tally
        tally.parts += 1
        tally.samples += int(row["samples"])
        tally.faces += int(row["faces"])
        tally.bytes += int(row["bytes"])
        tally.reasons.update(json.loads(row["reasons"]))
        for stage in ("read", "align", "invert", "write"):
            tally.stage_seconds[stage] += row[f"{stage}_seconds"]

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
    except (KeyboardInterrupt, _Interrupted):
        outcome.interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(config: JobConfig, plan: Plan, outcome: Outcome) -> None:
    """Run the stages over what the plan has to do."""
    committer = Committer(plan, outcome)
    with running_ray() as resources:
        configure_context()
        pools = Pools.of(config, resources, local=not in_cluster())
        dataset = build_dataset(plan, pools)
        with Progress(outcome.tally, len(plan.works), plan.bytes_to_do) as progress:
            for row in summaries(dataset):
                committer.take(row)
                progress.update()
    committer.finish()


def run_job(config: JobConfig) -> Outcome:
    """Plan, run and account for one job.

    Raises a `RequestError` for a request that is wrong, before any work. What fails later is in
    `Outcome.errors`: the parts that were committed stay, and the same call finishes the rest.
    """
    started = datetime.now(UTC)
    plan = make_plan(config)
    outcome = Outcome(Tally(), plan.done_parts, plan.done_samples)
    with _stoppable(outcome):
        try:
            for state in plan.states.values():
                plan.writer.clear(state)
            if plan.works:
                _execute(config, plan, outcome)
            if outcome.exit_code == 0:
                write_card(open_table(config.output))
        except PipelineError as error:
            outcome.errors.append(str(error))
        except Exception as error:  # noqa: BLE001 - Ray's own failures; run again continues
            outcome.errors.append(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
    _record(config, plan, outcome, started)
    return outcome


def _record(config: JobConfig, plan: Plan, outcome: Outcome, started: datetime) -> None:
    facts = {
        "started": started.isoformat(timespec="seconds"),
        "config": config.model_dump(exclude_none=True),
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        **outcome.to_dict(plan.writer.store.root),
    }
    try:
        plan.writer.record_run(started, secrets.token_hex(4), facts)
    except PipelineError as error:
        outcome.errors.append(f"the account of this run could not be written: {error}")
