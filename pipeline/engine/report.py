"""The closing words of a run: counts, rejects by reason, mean metrics of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from pipeline.config import JobConfig
from pipeline.engine.outcome import Outcome
from pipeline.errors import printable

_SHOWN = ("l2", "psnr", "lpips", "id_similarity")


def _counts(outcome: Outcome) -> Table:
    tally = outcome.tally
    table = Table(title="this run", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_row("samples", str(tally.samples))
    table.add_row("faces", str(tally.faces))
    if tally.identity_missed:
        table.add_row("faces without an identity", str(tally.identity_missed))
    if tally.icc_ignored:
        table.add_row(
            "colour profiles ignored: damaged or not of the image", str(tally.icc_ignored)
        )
    for reason, count in tally.reasons.most_common():
        table.add_row(f"rejected: {reason}", str(count))
    table.add_row("parts done", str(tally.parts))
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
        table.add_row(str(step), *("-" if one is None else f"{one:.4f}" for one in values))
    return table


def print_outcome(config: JobConfig, outcome: Outcome) -> None:
    """Print the account of a run to stderr; what failed, and how to go on, comes last.

    Nothing where stderr is for machines: `run_ended` says the same.
    """
    if config.log_format == "json":
        return
    console = Console(stderr=True)
    console.print(_counts(outcome))
    if outcome.exit_code == 0:
        if outcome.means is not None:
            console.print(_steps(outcome.means))
        return
    for error in outcome.errors[:20]:
        console.print(f"failed: {printable(error)}", markup=False, highlight=False, soft_wrap=True)
    more = len(outcome.errors) - 20 + outcome.more_errors
    if more > 0:
        console.print(f"... and {more} more; the first thousand are in _runs/ of the table")
    state = "stopped" if outcome.interrupted else "not finished"
    console.print(f"{state}: what is committed stays; run the same command again to continue")
