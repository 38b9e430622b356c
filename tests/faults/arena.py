"""Input, table and runs of one schedule."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults.dataset import PART_SIZE, sample_ids, upload, write_dataset
from tests.faults.findings import Findings, examine, table_files
from tests.faults.light import Wreck
from tests.faults.runs import LIGHT_BOUND_S, RAY_BOUND_S, Ended, LightRun, ProcessRun, Run
from tests.faults.stages import PACE
from tests.faults.world import RAY_PACE_S, World
from tests.s3_server import drop_bucket

MOST_RUNS = 5
# A store that stays broken is then reported after seconds, not after s3fs's own retries.
IMPATIENT = {"AWS_MAX_ATTEMPTS": "1"}


@dataclass(frozen=True)
class Result:
    """Result of one schedule."""

    seed: int
    kind: str
    when: str
    runs: int
    recovery_s: float
    findings: Findings
    hung: bool = False
    failure: str = ""
    unavailable: str = ""

    @property
    def ok(self) -> bool:
        """Return whether every guarantee held."""
        return self.findings.sound and not self.hung and not self.failure


class BrokenPromiseError(Exception):
    """End of a run that no fault excuses."""


class Arena:
    """Environment of a schedule: a kind of fault starts runs in it and records when it struck."""

    def __init__(self, world: World, seed: int, *, on_s3: bool = False) -> None:
        self.world, self.seed = world, seed
        self.rng = random.Random(seed)
        unique = f"seed-{seed}-{time.monotonic_ns()}"
        self.folder = world.folder / unique
        self.bucket = unique if on_s3 else ""
        self.photos = write_dataset(self.folder / "photos")
        self.input, self.output = str(self.photos), str(self.folder / "table")
        self.environment: dict[str, str] = {}
        self.findings: Findings | None = None
        self.part_size = PART_SIZE
        self.files_per_shard = 1024
        self.recut = False  # whether runs split shards into parts of different sizes
        self.runs, self.when = 0, ""
        self.struck_at: float | None = None
        if on_s3:
            self.environment = world.s3_environment
            world.s3.mkdir(self.bucket)
            self.input, self.output = f"s3://{self.bucket}/photos", f"s3://{self.bucket}/table"
            upload(self.photos, self.input)

    def close(self) -> None:
        """Delete the bucket: the server can hold about a hundred."""
        if self.bucket:
            drop_bucket(self.world.server, self.bucket)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return the job's settings."""
        return {
            "input": self.input,
            "output": self.output,
            "model": self.world.model,
            "identity": "none",
            "part_size": self.part_size,
            "files_per_shard": self.files_per_shard,
            "prealigned": True,
            **changes,
        }

    def struck(self, when: str) -> None:
        """Record the time of the fault and its description."""
        self.when = when
        self.struck_at = time.monotonic()

    def recut_in(self, part_size: int) -> None:
        """Let later runs split the remaining shards into parts of another size."""
        self.part_size, self.recut = part_size, True

    def light(
        self,
        wreck: Wreck | None = None,
        environment: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> LightRun:
        """Start a run without Ray."""
        self.runs += 1
        report = self.folder / f"report-{self.runs}.json"
        given = {**self.environment, **(environment or {})}
        run = LightRun(self.world.forks, report, self.settings(**changes), given, wreck)
        self.world.runs.append(run)
        return run

    def alone(self, wreck: Wreck | None, environment: Mapping[str, str]) -> ProcessRun:
        """Start a run without Ray as a separate program, for which libraries can be preloaded."""
        report = self.folder / f"report-alone-{self.runs}.json"
        planted = asdict(wreck) if wreck else None
        given = {"settings": self.settings(), "wreck": planted, "report": str(report)}
        command = ["-m", "tests.faults.light", json.dumps(given)]
        return self._process(command, environment, LIGHT_BOUND_S)

    def on_cluster(self) -> ProcessRun:
        """Start a run on the shared cluster."""
        return self._on_ray({"RAY_ADDRESS": self.world.cluster.address})

    def on_this_machine(self) -> ProcessRun:
        """Start a run that starts its own Ray."""
        return self._on_ray({PACE: RAY_PACE_S})

    def _on_ray(self, environment: Mapping[str, str]) -> ProcessRun:
        settings = self.settings(align_workers=2, inverters=2)
        command = ["-m", "tests.faults.ray_job", json.dumps(settings)]
        return self._process(command, environment, RAY_BOUND_S)

    def _process(
        self, command: list[str], environment: Mapping[str, str], bound: float
    ) -> ProcessRun:
        self.runs += 1
        given = {**self.environment, **environment}
        run = ProcessRun(self.folder / f"run-{self.runs}", command, given, bound)
        self.world.runs.append(run)
        return run

    @staticmethod
    def end(run: Run) -> Ended:
        """Wait for a run; check that it reports a failure in one line, and not as code 2."""
        ended = run.wait()
        traced = "Traceback" in ended.said
        if ended.code == 2 or (ended.code == 1 and (traced or not ended.said)):
            raise BrokenPromiseError(f"a run ended with {ended.code}: {ended.said[-2000:]}")
        return ended

    def finish(self, run: Run, again: Callable[[], Run] | None = None) -> None:
        """Wait for `run`, and repeat the command until one ends with 0."""
        ended = self.end(run)
        while ended.code != 0:
            if self.runs >= MOST_RUNS:
                raise BrokenPromiseError(f"not done after {self.runs} runs: {ended.said[-2000:]}")
            ended = self.end((again or self.light)())

    def undisturbed(self, name: str = "undisturbed") -> dict[str, bytes]:
        """Return the files of the table that an undisturbed run makes of the present input."""
        output = self.folder / name
        environment = self.world.server.env if self.bucket else {}
        settings = self.settings(output=str(output))
        report = self.folder / f"report-{name}.json"
        ended = LightRun(self.world.forks, report, settings, environment).wait()
        assert ended.code == 0, ended.said
        return table_files(str(output))[0]

    def examine(self) -> Findings:
        """Return what is wrong with the table; a kind that removes its disk calls this earlier."""
        if self.findings is None:
            samples = sample_ids(self.input, self.files_per_shard)
            self.findings = examine(self.output, samples, self.undisturbed(), recut=self.recut)
        return self.findings
