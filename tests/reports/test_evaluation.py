import numpy as np
import pytest

from pipeline.reports.evaluation import (
    Method,
    comparison,
    notes,
    paired,
    per_bucket,
    per_step,
)
from pipeline.reports.faces import read_face_scalars
from pipeline.reports.sheets import ReportTable
from tests.reports.compared import face, write_table


@pytest.fixture
def method(tmp_path):
    def make(faces, label="m", seconds=None) -> Method:
        return Method(label, read_face_scalars(write_table(tmp_path / label, faces)), seconds)

    return make


def column(sheet: ReportTable, name: str) -> list:
    return [row[list(sheet.header).index(name)] for row in sheet.rows]


def test_comparison_has_quality_and_cost(method):
    first = method({"a": face([0.4, 0.2]), "b": face([0.4, 0.4])}, "one", seconds=1.5)
    second = method({"a": face([0.1]), "b": face([0.1])}, "two")
    sheet = comparison([first, second])
    assert sheet.header[:4] == ["method", "ID ↑", "L2 ↓", "LPIPS ↓"]
    assert column(sheet, "L2 ↓")[0].mean == pytest.approx(0.3)
    assert column(sheet, "ID ↑")[1].mean == pytest.approx(0.9)
    assert column(sheet, "seconds a face") == [1.5, None]
    assert [each.mean for each in column(sheet, "steps")] == [2.0, 1.0]
    assert [each.mean for each in column(sheet, "generator passes")] == [3.0, 2.0]


def test_only_steps_and_passes_have_intervals(method):
    adaptive = method({"a": face([0.4, 0.2, 0.1]), "b": face([0.4])}, "auto", seconds=1.5)
    sheet = comparison([adaptive, method({"a": face([0.1]), "b": face([0.1])}, "one")])
    steps, fixed = column(sheet, "steps")
    assert (steps.mean, steps.n) == (2.0, 2)
    assert steps.half_width == pytest.approx(12.706, rel=1e-3)
    assert fixed.half_width == 0
    assert column(sheet, "generator passes")[0].half_width == pytest.approx(12.706, rel=1e-3)
    assert "| 2.00 ± 12.71 |" in sheet.to_markdown()
    assert "steps,steps ±95%,steps n,generator passes,generator passes ±95%" in sheet.to_csv()
    assert "Seconds are measured per run" in sheet.to_markdown()


def test_stopped_face_repeats_its_last_value(method):
    sheet = per_step([method({"a": face([0.5, 0.3, 0.1]), "b": face([0.2])})])
    means = [each.mean for each in column(sheet, "L2 ↓")]
    assert means == pytest.approx([0.35, 0.25, 0.15])
    assert [each.n for each in column(sheet, "L2 ↓")] == [2, 2, 2]


def test_time_until_a_step_excludes_stopped_faces(method):
    adaptive = method({"a": face([0.5, 0.3, 0.1]), "b": face([0.2])}, seconds=4.0)
    # Two seconds per step: both faces have the first step, one the second and third.
    np.testing.assert_allclose(adaptive.cost_until(adaptive.seconds), [2.0, 3.0, 4.0])
    assert list(notes(adaptive)) == [
        "m: faces have 1 to 3 steps; in the means of later steps a face that has stopped keeps "
        "its last value."
    ]


def test_equal_steps_share_the_time_equally(method):
    fixed = method({"a": face([0.5, 0.3, 0.1, 0.1])}, seconds=2.0)
    assert fixed.cost_until(fixed.seconds).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_paired_interval_is_narrower_than_the_means(method):
    levels = np.linspace(0.1, 0.9, 20)
    first = method({f"{i:02}": face([level]) for i, level in enumerate(levels)}, "one")
    second = method({f"{i:02}": face([level - 0.01]) for i, level in enumerate(levels)}, "two")
    wide = column(comparison([first, second]), "L2 ↓")[0]
    (difference,) = column(paired([first, second]), "L2 difference")
    assert difference.mean == pytest.approx(-0.01, rel=1e-4)
    assert difference.half_width < 1e-6 < 0.05 < wide.half_width
    assert column(paired([first, second]), "L2 better on") == ["100%"]
    assert column(paired([first, second]), "ID better on") == ["100%"]


def test_difference_covers_faces_measured_in_both(method):
    unseen = {"id_similarity": None}
    first = method({"a": face([0.1], **unseen), "b": face([0.2]), "c": face([0.3])}, "one")
    second = method({"a": face([0.1]), "b": face([0.1]), "c": face([0.1], **unseen)}, "two")
    (difference,) = column(paired([first, second]), "ID difference")
    assert (difference.n, difference.mean) == (1, pytest.approx(0.1))
    assert "one: ID over 2 of 3 faces." in notes(first)


def test_incomplete_means_state_their_number(method):
    unseen = {"id_similarity": None, "id_similarity_per_step": [None]}
    first = method({"a": face([0.1], **unseen), "b": face([0.2]), "c": face([0.3])}, "one")
    second = method({"a": face([0.1]), "b": face([0.2]), "c": face([0.2])}, "two")
    for sheet in (comparison([first, second]), per_step([first, second]), paired([first, second])):
        text = sheet.to_markdown()
        assert text.count("(n = 2)") == 1, text
    assert "(n = 2)" in per_bucket([first]).to_markdown()


def test_thirds_have_each_face_once(method):
    faces = {str(i): face([i / 10], face_px=100.0 + i, yaw=None) for i in range(9)}
    sheet = per_bucket([method(faces)])
    size = [row for row in sheet.rows if row[0] == "face_px"]
    assert [row[1:3] for row in size] == [["100 to 102", 3], ["103 to 105", 3], ["106 to 108", 3]]
    assert [row[5].mean for row in size] == pytest.approx([0.1, 0.4, 0.7])
    assert not any(row[0] == "yaw" for row in sheet.rows)


def test_unknown_trait_is_a_separate_bucket(method):
    faces = {str(i): face([0.1], yaw=None if i == 3 else i / 10) for i in range(4)}
    rows = [row for row in per_bucket([method(faces)]).rows if row[0] == "yaw"]
    assert rows[-1][1:3] == ["not known", 1]


def test_refined_table_notes_the_missing_cost(method):
    refined = method({"a": face([0.1], method="hybrid", refined_from="s-0/a#0")}, seconds=1.0)
    assert list(notes(refined)) == [
        "m: started from codes of another table, whose cost is not included in seconds, steps and "
        "generator passes."
    ]


def test_unmeasured_metric_has_no_column(method):
    unmeasured = {"id_similarity": None, "id_similarity_per_step": [None]}
    assert "ID ↑" not in comparison([method({"a": face([0.1], **unmeasured)})]).header
