"""Report tables as Markdown and CSV, and the folder that holds a report."""

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
REPORT_TITLE = "# Evaluation on"  # with which it begins
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
    """Return whether a folder holds nothing but files that a report writes again."""
    if not REPORT_FILES.issuperset(names):
        return False
    return REPORT_NAME not in names or store.get(REPORT_NAME).startswith(REPORT_TITLE.encode())


REPORT_OUTPUT = OutputKind("a report of this job", _is_report)


Cell = str | int | float | Interval | None
MISSING = "-"


@dataclass(frozen=True)
class Sheet:
    """Rows of cells below a header; `name` is that of the CSV file, without its suffix.

    An `Interval` is one column of Markdown (`mean ± half width`, with the number of values where
    some were not measured) and three of CSV. None and NaN are `-` in Markdown and an empty field in
    CSV.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # a sentence below the title

    def to_markdown(self) -> str:
        """A section: the title, the note and the table."""
        lines = [self.header, ["---"] * len(self.header)]
        lines += [[_shown(cell) for cell in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(text for text in (f"## {self.title}", self.note, table) if text) + "\n"

    def to_csv(self) -> str:
        """A header line and the rows; numbers in full precision."""
        sink = io.StringIO()
        lines = csv.writer(sink, lineterminator="\n")
        wide = [
            any(isinstance(row[column], Interval) for row in self.rows)
            for column in range(len(self.header))
        ]
        lines.writerow(self._csv_header(wide))
        lines.writerows(
            [field for cell, three in zip(row, wide, strict=True) for field in _fields(cell, three)]
            for row in self.rows
        )
        return sink.getvalue()

    def _csv_header(self, wide: Sequence[bool]) -> Iterator[str]:
        for name, three in zip(self.header, wide, strict=True):
            plain = name.rstrip(" ↑↓")
            yield plain
            if three:
                yield from (f"{plain} ±95%", f"{plain} n")


def number(value: float) -> str:
    """At least three digits and no exponent: 0.0283, 1.50, 2,150; whole numbers as they are."""
    if math.isnan(value):
        return MISSING
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if value == round(value):
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _shown(cell: Cell) -> str:
    if cell is None:
        return MISSING
    if isinstance(cell, Interval):
        return _interval(cell)
    return number(cell) if isinstance(cell, float) else printable(str(cell)).replace("|", "\\|")


def _interval(cell: Interval) -> str:
    """Four decimals, from 1 on two, or more where the half width would have fewer than two digits.

    A count that is the same everywhere has none: 5 ± 0.
    """
    if math.isnan(cell.mean):
        return MISSING
    counted = f" (n = {cell.n:,})" if cell.missing else ""
    if math.isnan(cell.half_width):
        return f"{cell.mean:.4f}{counted}"
    if not cell.half_width and cell.mean == round(cell.mean):
        return f"{cell.mean:,.0f} ± 0{counted}"
    digits = 4 if abs(cell.mean) < 1 else 2
    if cell.half_width:
        digits = max(digits, 1 - math.floor(math.log10(cell.half_width)))
    digits = min(digits, 8)
    return f"{cell.mean:.{digits}f} ± {cell.half_width:.{digits}f}{counted}"


def _fields(cell: Cell, three: bool) -> list[str | int]:
    if isinstance(cell, Interval):
        return [_field(cell.mean), _field(cell.half_width), cell.n]
    field = _field(cell) if isinstance(cell, float) else "" if cell is None else cell
    return [field, "", ""] if three else [field]


def _field(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
