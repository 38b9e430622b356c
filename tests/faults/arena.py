"""One schedule's own input, table and runs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.dataset import PART_SIZE, sample_ids, upload, write_dataset
from tests.faults.findings import Findings, examine, table_files
from tests.faults.light import Wreck
from tests.faults.runs import RAY_BOUND_S, Ended, LightRun, ProcessRun, Run
from tests.faults.world import World

MOST_RUNS = 5
# So that a store which stays broken is told after seconds and not after s3fs's own patience.
IMPATIENT = {"AWS_MAX_ATTEMPTS": "1"}


@dataclass(frozen=True)
class Result:
    """What became of one schedule."""

    seed: int
    kind: str
    when: str
    runs: int
    recovery_s: float
    findings: Findings
    hung: bool = False
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return self.findings.sound and not self.hung and not self.failure


class BrokenPromiseError(Exception):
    """A run ended in a way that no fault excuses."""


class Arena:
    """Where a schedule runs. A kind of fault starts runs in it and says when it struck."""

    def __init__(self, world: World, seed: int, *, on_s3: bool = False) -> None:
        self.world, self.seed, self.on_s3 = world, seed, on_s3
        self.rng = random.Random(seed)
        self.folder = world.folder / f"seed-{seed}-{time.monotonic_ns()}"
        self.photos = write_dataset(self.folder / "photos")
        self.input, self.output = str(self.photos), str(self.folder / "table")
        self.environment: dict[str, str] = {}
        self.runs = 0
        self.when = ""
        self.struck_at: float | None = None
        self.ended: list[Ended] = []
        if on_s3:
            bucket = f"seed-{seed}-{time.monotonic_ns()}"
            world.server  # noqa: B018 - sets the environment
            world.s3.mkdir(bucket)
            self.input, self.output = f"s3://{bucket}/photos", f"s3://{bucket}/table"
            upload(self.photos, self.input)
            self.environment = world.s3_environment

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The job's settings."""
        return {
            "input": self.input,
            "output": self.output,
            "model": self.world.model,
            "identity": "none",
            "part_size": PART_SIZE,
            "prealigned": True,
            **changes,
        }

    def struck(self, when: str) -> None:
        """Note that the fault happened, and when in words."""
        self.when = when
        self.struck_at = time.monotonic()

    def light(
        self, wreck: Wreck | None = None, environment: Mapping[str, str] = {}, **settings: Any
    ) -> LightRun:
        """Start a run without Ray."""
        self.runs += 1
        told = self.folder / f"told-{self.runs}.json"
        given = {**self.environment, **environment}
        return LightRun(self.world.forks, told, self.settings(**settings), given, wreck)

    def command(
        self, module: str, environment: Mapping[str, str] = {}, **settings: Any
    ) -> ProcessRun:
        """Start a run as a process of its own: `module` with the settings as its argument."""
        self.runs += 1
        arguments = ["-m", module, json.dumps(self.settings(**settings))]
        given = {**self.environment, **environment}
        return ProcessRun(self.folder / f"run-{self.runs}", arguments, given, RAY_BOUND_S)

    def end(self, run: Run) -> Ended:
        """Wait for a run; a fault never makes a request wrong, so exit code 2 breaks a promise."""
        ended = run.wait()
        self.ended.append(ended)
        if ended.code == 2 or (ended.code == 1 and not ended.errors and not self._terminated(ended)):
            raise BrokenPromiseError(f"a run ended with {ended.code}: {ended.said[-2000:]}")
        return ended

    @staticmethod
    def _terminated(ended: Ended) -> bool:
        return '"exit_code": 1' in ended.said  # stopped by a signal: no error, and to be run again

    def finish(self, run: Run, again: Callable[[], Run] | None = None) -> None:
        """Wait for `run`, and run the same command again until one ends with 0."""
        ended = self.end(run)
        while ended.code != 0:
            if self.runs >= MOST_RUNS:
                raise BrokenPromiseError(f"not done after {self.runs} runs: {ended.said[-2000:]}")
            ended = self.end((again or self.light)())

    def findings(self) -> Findings:
        """Examine the table, beside one that an undisturbed run over the same input makes."""
        beside = str(self.folder / "undisturbed")
        told = self.folder / "told-undisturbed.json"
        environment = self.world.server.env if self.on_s3 else {}
        settings = self.settings(output=beside)
        ended = LightRun(self.world.forks, told, settings, environment).wait()
        assert ended.code == 0, ended.said
        return examine(self.output, sample_ids(self.input), table_files(beside)[0])

    def told(self, path: Path) -> str:
        """The text of a file that may be missing."""
        return path.read_text() if path.exists() else ""
