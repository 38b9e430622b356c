"""Definition of a kind of bad input, and of the outcomes that are permitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pipeline.errors import FingerprintError, PipelineError
from pipeline.images import Rejection

# Errors are read in a terminal, where longer lines hide the important part.
LONGEST_MESSAGE = 1000

Case = dict[str, bytes]  # relative file name -> content


class BrokenPromiseError(Exception):
    """Outcome other than a row, a reject with its reason, or one clear error."""


@dataclass(frozen=True)
class Kind:
    """Kind of bad input.

    `make` draws a case from a seeded generator. `run` gives it to the pipeline, with an empty
    folder for files, and returns the outcome's name; a `PipelineError` that it raises is an outcome
    too. `share` is the kind's weight in a mixed run. A case may take `limit_s` seconds and
    `memory_mib` more memory than its process had before.
    """

    name: str
    make: Callable[[Random], Case]
    run: Callable[[Case, Path], str]
    share: int
    limit_s: float = 60.0  # generous: a machine may be busy with other work
    memory_mib: int = 256


def outcome_of(kind: Kind, case: Case, folder: Path) -> str:
    """Return the outcome of one case; raise anything that is not a permitted outcome."""
    try:
        return kind.run(case, folder)
    except Rejection as rejection:
        check_line(rejection)
        return f"reject:{rejection.reason.value}"
    except PipelineError as error:
        check_line(error)
        return f"error:{type(error).__name__}"


def check_line(error: PipelineError) -> None:
    """Check that an error is one line that a terminal can show."""
    text = str(error)
    # Differences between two tables have one line each.
    lines = text.split("\n") if isinstance(error, FingerprintError) else [text]
    if not all(line.strip() and line.isprintable() for line in lines):
        raise BrokenPromiseError(f"the error is not one printable line: {text!r}")
    if len(text) > LONGEST_MESSAGE:
        raise BrokenPromiseError(f"the error has {len(text)} characters: {text[:300]!r}...")


def write_case(case: Case, folder: Path) -> None:
    """Write the case's files below `folder`."""
    for name, content in case.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
