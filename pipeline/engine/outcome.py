"""How a run ended, or stands: counts, errors, exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.tally import Tally
from pipeline.storage import CREDENTIALS_EXPIRED, LeftOut

# Storage that is down fails every part; the first errors say why.
MAX_ERRORS = 1000
MAX_TRACES = 20  # of different errors, 20,000 characters each
MAX_WARNINGS = 100


@dataclass
class Outcome:
    """How a run ended; `exit_code` 0 is done, 1 is to be run again."""

    tally: Tally
    skipped_parts: int = 0
    skipped_samples: int = 0
    listed: LeftOut = field(default_factory=LeftOut)  # what the listing passed over
    errors: list[str] = field(default_factory=list)
    more_errors: int = 0
    traces: list[str] = field(default_factory=list)  # of unexpected errors, for the run's record
    warnings: list[str] = field(default_factory=list)
    more_warnings: int = 0
    interrupted: bool = False
    ray_log: str | None = None  # folder of Ray's own log, where it is on this machine
    means: dict[str, list[float | None]] | None = None  # of `Figures`, where this run changed them

    @property
    def exit_code(self) -> int:
        """0 if every shard is committed."""
        return 1 if self.errors or self.interrupted else 0

    def fail(self, error: str, trace: str = "") -> None:
        """Note one thing that went wrong; `trace` is that of an unexpected error."""
        if trace and trace not in self.traces and len(self.traces) < MAX_TRACES:
            self.traces.append(trace)
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)
        else:
            self.more_errors += 1

    def fail_first(self, error: str) -> None:
        """Note what went wrong above all, before everything else."""
        self.errors.insert(0, error)

    def explain_expired(self, **places: str) -> None:
        """Say first whose credentials expired, where errors name them as the reason.

        `places` are the URIs of the run by what they are: the input, the output.
        """
        expired = [error for error in self.errors if CREDENTIALS_EXPIRED in error]
        if not expired:
            return
        of = [
            f"the {name} '{uri}'"
            for name, uri in places.items()
            if any(f"'{uri}/" in error or f"'{uri}'" in error for error in expired)
        ]
        self.fail_first(
            f"{CREDENTIALS_EXPIRED} for {' and '.join(of) or 'the storage'}: get new ones and run "
            "the same command again, which goes on with what is missing"
        )

    def warn(self, warning: str) -> None:
        """Note what is no failure, but may not be what was meant."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(warning)
        else:
            self.more_warnings += 1

    @property
    def left_out(self) -> LeftOut:
        """What this run passed over: as it listed the input, and in the shards that it did."""
        counted = LeftOut(self.listed.ordered())
        counted.merge(self.tally.left_out)
        return counted

    def to_dict(self, table: str) -> dict[str, Any]:
        """The job's last line: what this run did, not what the table holds."""
        tally = self.tally
        seconds = tally.seconds
        return {
            "samples": tally.samples,
            "faces": tally.faces,
            "rejects": tally.rejects,
            "rejects_by_reason": dict(sorted(tally.reasons.items())),
            "left_out": self.left_out.ordered(),
            "empty_shards": tally.empty_shards,
            "icc_ignored": tally.icc_ignored,
            "identity_missed": tally.identity_missed,
            "parts": tally.parts,
            "skipped_parts": self.skipped_parts,
            "seconds": round(seconds, 2),
            "first_part_seconds": round(tally.first_seconds, 2),
            "images_per_second": round(tally.samples / seconds, 3) if seconds else 0.0,
            "stage_seconds": {k: round(v, 2) for k, v in sorted(tally.stage_seconds.items())},
            "inversion_seconds": round(tally.inversion_seconds, 3),
            "errors": self.errors,
            "more_errors": self.more_errors,
            "warnings": self.warnings,
            "more_warnings": self.more_warnings,
            "exit_code": self.exit_code,
            "table": table,
        }
