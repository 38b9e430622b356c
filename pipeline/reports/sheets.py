"""Report tables as Markdown and CSV, and the check of a report's folder."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import printable
from pipeline.reports.statistics import Interval
from pipeline.storage import OutputKind, Store

REPORT_NAME = "comparison.md"
REPORT_TITLE = "# Evaluation on"  # first words of REPORT_NAME
REPORT_FILES = frozenset(
    {
        REPORT_NAME,
        *("comparison.csv", "paired.csv", "per_step.csv", "per_bucket.csv"),
        *("coarse_to_fine.csv", "coarse_to_fine_layers.csv", "coarse_to_fine_bands.csv"),
        *("quality_against_time.png", "coarse_to_fine.png"),
        *("stop_curve.csv", "stop_curve.md", "stop_curve.png"),
    }
)


def _is_report(store: Store, names: Sequence[str]) -> bool:
    """Return whether a folder has only files that a report overwrites."""
    if not REPORT_FILES.issuperset(names):
        return False
    return REPORT_NAME not in names or store.get(REPORT_NAME).startswith(REPORT_TITLE.encode())


REPORT_OUTPUT = OutputKind("a report of this job", _is_report)


Cell = str | int | float | Interval | None
MISSING = "-"


@dataclass(frozen=True)
class ReportTable:
    """Rows of cells below a header; `name` is the CSV file's name without suffix.

    An `Interval` is one column in Markdown (`mean ± half width`, with the number of values if some
    are missing) and three in CSV. None and NaN are `-` in Markdown and an empty field in CSV.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # a sentence below the title

    def to_markdown(self) -> str:
        """Return a section with the title, the note and the table."""
        lines = [self.header, ["---"] * len(self.header)]
        lines += [[_as_text(cell) for cell in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(text for text in (f"## {self.title}", self.note, table) if text) + "\n"

    def to_csv(self) -> str:
        """Return a header line and the rows; numbers have full precision."""
        sink = io.StringIO()
        lines = csv.writer(sink, lineterminator="\n")
        is_interval = [
            any(isinstance(row[column], Interval) for row in self.rows)
            for column in range(len(self.header))
        ]
        lines.writerow(self._csv_header(is_interval))
        lines.writerows(
            [
                field
                for cell, expand in zip(row, is_interval, strict=True)
                for field in _fields(cell, expand)
            ]
            for row in self.rows
        )
        return sink.getvalue()

    def _csv_header(self, is_interval: Sequence[bool]) -> Iterator[str]:
        for name, expand in zip(self.header, is_interval, strict=True):
            plain = name.rstrip(" ↑↓")
            yield plain
            if expand:
                yield from (f"{plain} ±95%", f"{plain} n")


def number(value: float) -> str:
    """Format with at least three digits, without exponent: 0.0283, 1.50, 2,150, 5."""
    if math.isnan(value):
        return MISSING
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if value == round(value):
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _as_text(cell: Cell) -> str:
    if cell is None:
        return MISSING
    if isinstance(cell, Interval):
        return _interval(cell)
    return number(cell) if isinstance(cell, float) else printable(str(cell)).replace("|", "\\|")


def _interval(cell: Interval) -> str:
    """Format with four decimals, two from 1 on, and more if the half width needs two digits.

    An integer mean without variation has no decimals: 5 ± 0.
    """
    if math.isnan(cell.mean):
        return MISSING
    count = f" (n = {cell.n:,})" if cell.missing else ""
    if math.isnan(cell.half_width):
        return f"{cell.mean:.4f}{count}"
    if not cell.half_width and cell.mean == round(cell.mean):
        return f"{cell.mean:,.0f} ± 0{count}"
    digits = 4 if abs(cell.mean) < 1 else 2
    if cell.half_width:
        digits = max(digits, 1 - math.floor(math.log10(cell.half_width)))
    digits = min(digits, 8)
    return f"{cell.mean:.{digits}f} ± {cell.half_width:.{digits}f}{count}"


def _fields(cell: Cell, expand: bool) -> list[str | int]:
    if isinstance(cell, Interval):
        return [_field(cell.mean), _field(cell.half_width), cell.n]
    field = _field(cell) if isinstance(cell, float) else "" if cell is None else cell
    return [field, "", ""] if expand else [field]


def _field(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
