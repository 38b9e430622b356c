"""The folder of a report: which files are in it, and how it is told from a user's own."""

from __future__ import annotations

from collections.abc import Sequence

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
