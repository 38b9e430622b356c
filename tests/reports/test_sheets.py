import csv
import io
import math

from pipeline.reports.sheets import ReportTable, number
from pipeline.reports.statistics import Interval

ROWS = [
    ["a|b", Interval(9, 0.02834, 0.00123), 1.5, 3],
    ["c", Interval(0, math.nan, math.nan), None, 4],
]
SHEET = ReportTable("means", "Means", ["method", "L2 ↓", "seconds", "steps"], ROWS, "A note.")


def test_markdown_has_mean_and_half_width():
    lines = SHEET.to_markdown().splitlines()
    assert lines[0] == "## Means"
    assert "A note." in lines
    assert lines[-2:] == ["| a\\|b | 0.0283 ± 0.0012 | 1.50 | 3 |", "| c | - | - | 4 |"]


def test_csv_has_columns_for_half_width_and_count():
    rows = list(csv.DictReader(io.StringIO(SHEET.to_csv())))
    assert rows[0]["L2"] == "0.02834"
    assert rows[0]["L2 ±95%"] == "0.00123"
    assert rows[0]["L2 n"] == "9"
    assert (rows[1]["L2"], rows[1]["L2 n"], rows[1]["seconds"]) == ("", "0", "")


def test_mean_over_fewer_values_states_their_number():
    rows = [[Interval(1_200, 0.5, 0.25, missing=3)], [Interval(1, 0.5, math.nan, missing=2)]]
    lines = ReportTable("s", "S", ["x"], rows).to_markdown().splitlines()
    assert lines[-2:] == ["| 0.5000 ± 0.2500 (n = 1,200) |", "| 0.5000 (n = 1) |"]


def test_small_half_width_gets_more_digits():
    sheet = ReportTable("s", "S", ["x"], [[Interval(9, 0.5, 0.0000123)]])
    assert "0.500000 ± 0.000012" in sheet.to_markdown()


def test_integer_counts_have_no_decimals():
    rows = [[Interval(9, 5.0, 0.0)], [Interval(9, 3.2166, 0.2093)], [Interval(9, 1310.5, 12.0)]]
    lines = ReportTable("s", "S", ["steps"], rows).to_markdown().splitlines()
    assert lines[-3:] == ["| 5 ± 0 |", "| 3.22 ± 0.21 |", "| 1310.50 ± 12.00 |"]


def test_numbers_have_three_digits_and_no_exponent():
    expected = [number(value) for value in (0.02834, 1.5, 2150.4, 0.0, math.nan)]
    assert expected == ["0.0283", "1.50", "2,150", "0", "-"]
