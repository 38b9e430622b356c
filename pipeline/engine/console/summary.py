"""Summary of a run on stderr: counts, rejects by reason, mean metrics, next commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import filesize
from rich.console import Console as Terminal
from rich.markup import escape
from rich.table import Table

from pipeline.config import JobConfig
from pipeline.engine.address import RAY_LOG
from pipeline.engine.console.pace import format_seconds
from pipeline.engine.console.progress import MAX_REPORTED
from pipeline.errors import printable
from pipeline.redaction import without_secrets
from pipeline.storage import canonical_uri
from pipeline.table import RunRecord

_LABELS = 12  # of files left out; all are in the last line of stdout
_WARNINGS = 20
_SHOWN = ("l2", "psnr", "lpips", "id_similarity")


def _counts(outcome: RunRecord) -> Table:
    counts = outcome.counts
    table = Table(title="this run", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_row("samples", str(counts.samples))
    table.add_row("faces", str(counts.faces))
    if counts.identity_missed:
        table.add_row("faces without an identity", str(counts.identity_missed))
    if counts.icc_ignored:
        table.add_row(
            "colour profiles ignored: damaged or not of the image", str(counts.icc_ignored)
        )
    for reason, count in counts.reasons.most_common():
        table.add_row(f"rejected: {reason}", str(count))
    for label, count in [*outcome.left_out.ordered().items()][:_LABELS]:
        table.add_row(escape(printable(f"left out: {label}")), str(count))
    table.add_row("parts done", str(counts.parts))
    table.add_row("parts skipped, done before", str(outcome.skipped_parts))
    return table


def _steps(means: Mapping[str, Sequence[float | None]]) -> Table:
    table = Table(
        title="mean of the whole table, per step",
        caption="the table's columns of these names are of each face's best step",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("step", *_SHOWN):
        table.add_column(name, justify="right")
    by_step = zip(*(means.get(name, ()) for name in _SHOWN), strict=True)
    for step, values in enumerate(by_step, start=1):
        table.add_row(str(step), *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def print_outcome(
    config: JobConfig,
    outcome: RunRecord,
    *,
    command: Sequence[str],  # the job as it was called, `sys.argv`
    reported: Collection[str] = (),  # failures that were printed as they happened
) -> None:
    """Print the summary of a run to stderr; failures and how to continue come last.

    Prints nothing with `--log-format json`, where the event `run_ended` has the same.
    """
    if config.log_format == "json":
        return
    console = Terminal(stderr=True)
    console.print(_counts(outcome))
    for warning in outcome.warnings[:_WARNINGS]:
        console.print(
            f"warning: {printable(warning)}", markup=False, highlight=False, soft_wrap=True
        )
    more = len(outcome.warnings) - _WARNINGS + outcome.more_warnings
    if more > 0:
        console.print(f"... and {more} more warnings")
    if outcome.exit_code == 0:
        if outcome.means is not None:
            console.print(_steps(outcome.means))
        _print(console, *next_steps(config, outcome, command))
        return
    _print(console, *_failures(outcome, reported))
    if outcome.errors and outcome.ray_log and Path(outcome.ray_log).is_dir():
        _print(console, f"Ray's own log: {outcome.ray_log} ({RAY_LOG}=1 shows what it prints)")
    state = "stopped" if outcome.interrupted else "not finished"
    _print(console, "to continue:", f"  {_called(command[0])} {shlex.join(command[1:])}")
    _print(console, f"{state}: what is committed stays; run the same command again to continue")


def _print(console: Terminal, *lines: str) -> None:
    """Print lines without markup or colours, so that commands can be pasted."""
    for line in lines:
        text = printable(without_secrets(line))
        console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


def _failures(outcome: RunRecord, reported: Collection[str]) -> Iterator[str]:
    """Yield each failure that was not printed yet, once."""
    errors = list(dict.fromkeys(outcome.errors))
    left = [error for error in errors if error not in reported]
    yield from (f"failed: {error}" for error in left[:MAX_REPORTED])
    more = len(left[MAX_REPORTED:]) + outcome.more_errors
    if more > 0:
        yield f"... and {more} more; the first thousand are in _runs/ of the table"


def next_steps(config: JobConfig, outcome: RunRecord, command: Sequence[str]) -> Iterator[str]:
    """Yield where the table is, and commands to query it, ready to paste."""
    table = canonical_uri(config.output)
    yield f"table: {table}"
    best = "SELECT image_id, l2, lpips FROM latents ORDER BY lpips LIMIT 10"
    query = f"{_job('query', command[0])} {shlex.quote(table)}"
    yield f'  {query} "{best}"'
    if outcome.counts.rejects:
        why = "SELECT reason, count(*) AS n FROM rejects GROUP BY reason ORDER BY n DESC"
        yield f'  {query} "{why}"'
    sheet = "contact_sheet.png"
    yield f"  {_job('sheet', command[0])} --table {shlex.quote(table)} --output {sheet}"


def _file_of(script: str) -> str:
    """Return the file that runs: `restyle` puts its words for usage in its place."""
    if not script.startswith("restyle "):
        return script
    return str(getattr(sys.modules["__main__"], "__file__", script))


def _called(script: str) -> str:
    """Return words that run `script` by this interpreter; short ones where a shell finds them."""
    script = _file_of(script)
    if shutil.which("restyle") == script:
        return "restyle"
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return shlex.join([python, script])


_FILES = {"query": "query_latents.py", "sheet": "contact_sheet.py"}  # names behind `restyle`


def _job(name: str, script: str) -> str:
    """Return the command of another job, as called from the same place as `script`."""
    if Path(_file_of(script)).stem == "restyle":
        return f"{_called(script)} {name}"
    return _called(str(Path(script).with_name(_FILES[name])))


_ESTIMATED = {
    "model": "model",
    "shards": "shards",
    "shards_to_do": "of these to do",
    "skipped_parts": "parts done before",
    "samples_to_do": "images to do",
    "parts_to_do": "parts to do",
    "align_seconds_a_sample": "seconds an image, aligning",
    "invert_seconds_a_sample": "seconds an image, inverting",
    "start_seconds": "time to start",
    "estimated_seconds": "time in all, on this machine",
    "estimated_table_bytes": "size of what is added",
    "table": "table",
}
_NOT_PRINTED = {"dry_run", "samples_are_exact"}


def print_estimate(config: JobConfig, estimate: Mapping[str, Any]) -> None:
    """Print the result of `estimate_job` to stderr; nothing with `--log-format json`."""
    if config.log_format == "json":
        return
    table = Table(title="what would be done", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for name in (*_ESTIMATED, *(estimate.keys() - _ESTIMATED.keys() - _NOT_PRINTED)):
        if name in estimate and estimate[name] not in (None, {}, []):
            exact = bool(estimate.get("samples_are_exact", True))
            text = _estimated(name, estimate[name], exact=exact)
            table.add_row(_ESTIMATED.get(name, name.replace("_", " ")), escape(text))
    Terminal(stderr=True).print(table, highlight=False)


def _estimated(name: str, value: Any, *, exact: bool) -> str:
    if name in ("start_seconds", "estimated_seconds"):
        return f"about {format_seconds(float(value))}" if value else "none"
    if name == "estimated_table_bytes":
        return filesize.decimal(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    about = "" if exact or name not in ("samples_to_do", "parts_to_do") else "about "
    return f"{about}{without_secrets(str(value))}"
