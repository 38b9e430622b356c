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
from pipeline.reports.sheets import Sheet
from tests.reports.compared import face, write_table


@pytest.fixture
def method(tmp_path):
    def make(faces, label="m", seconds=None) -> Method:
        return Method(label, read_face_scalars(write_table(tmp_path / label, faces)), seconds)

    return make


def column(sheet: Sheet, name: str) -> list:
    return [row[list(sheet.header).index(name)] for row in sheet.rows]


def test_the_comparison_has_quality_and_cost_of_each_method(method):
    one = method({"a": face([0.4, 0.2]), "b": face([0.4, 0.4])}, "one", seconds=1.5)
    two = method({"a": face([0.1]), "b": face([0.1])}, "two")
    sheet = comparison([one, two])
    assert sheet.header[:4] == ["method", "ID ↑", "L2 ↓", "LPIPS ↓"]
    assert column(sheet, "L2 ↓")[0].mean == pytest.approx(0.3)
    assert column(sheet, "ID ↑")[1].mean == pytest.approx(0.9)
    assert column(sheet, "seconds a face") == [1.5, None]
    assert [each.mean for each in column(sheet, "steps")] == [2.0, 1.0]
    assert [each.mean for each in column(sheet, "generator passes")] == [3.0, 2.0]


def test_steps_and_passes_have_an_interval_and_seconds_say_why_not(method):
    adaptive = method({"a": face([0.4, 0.2, 0.1]), "b": face([0.4])}, "auto", seconds=1.5)
    sheet = comparison([adaptive, method({"a": face([0.1]), "b": face([0.1])}, "one")])
    steps, fixed = column(sheet, "steps")
    assert (steps.mean, steps.n) == (2.0, 2)
    assert steps.half_width == pytest.approx(12.706, rel=1e-3)
    assert fixed.half_width == 0
    assert column(sheet, "generator passes")[0].half_width == pytest.approx(12.706, rel=1e-3)
    assert "| 2.00 ± 12.71 |" in sheet.to_markdown()
    assert "steps,steps ±95%,steps n,generator passes,generator passes ±95%" in sheet.to_csv()
    assert "Seconds are known of whole runs only" in sheet.to_markdown()


def test_a_face_that_stopped_keeps_its_last_value_in_later_steps(method):
    sheet = per_step([method({"a": face([0.5, 0.3, 0.1]), "b": face([0.2])})])
    means = [each.mean for each in column(sheet, "L2 ↓")]
    assert means == pytest.approx([0.35, 0.25, 0.15])
    assert [each.n for each in column(sheet, "L2 ↓")] == [2, 2, 2]


def test_time_until_a_step_counts_only_faces_that_made_it(method):
    adaptive = method({"a": face([0.5, 0.3, 0.1]), "b": face([0.2])}, seconds=4.0)
    # Two seconds a step: both make the first, one makes the second and the third.
    np.testing.assert_allclose(adaptive.cost_until(adaptive.seconds), [2.0, 3.0, 4.0])
    assert notes([adaptive]) == [
        "m: faces made 1 to 3 steps; in the means of later steps each that had stopped keeps "
        "its last value."
    ]


def test_steps_of_equal_length_share_the_time_equally(method):
    fixed = method({"a": face([0.5, 0.3, 0.1, 0.1])}, seconds=2.0)
    assert fixed.cost_until(fixed.seconds).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_the_paired_interval_sees_what_that_of_the_means_hides(method):
    levels = np.linspace(0.1, 0.9, 20)
    one = method({f"{i:02}": face([level]) for i, level in enumerate(levels)}, "one")
    two = method({f"{i:02}": face([level - 0.01]) for i, level in enumerate(levels)}, "two")
    wide = column(comparison([one, two]), "L2 ↓")[0]
    (difference,) = column(paired([one, two]), "L2 difference")
    assert difference.mean == pytest.approx(-0.01, rel=1e-4)
    assert difference.half_width < 1e-6 < 0.05 < wide.half_width
    assert column(paired([one, two]), "L2 better on") == ["100%"]
    assert column(paired([one, two]), "ID better on") == ["100%"]


def test_a_difference_is_over_faces_that_both_have_measured(method):
    unseen = {"id_similarity": None}
    one = method({"a": face([0.1], **unseen), "b": face([0.2]), "c": face([0.3])}, "one")
    two = method({"a": face([0.1]), "b": face([0.1]), "c": face([0.1], **unseen)}, "two")
    (difference,) = column(paired([one, two]), "ID difference")
    assert (difference.n, difference.mean) == (1, pytest.approx(0.1))
    assert "one: ID over 2 of 3 faces." in notes([one, two])


def test_every_mean_that_misses_faces_says_how_many_it_counts(method):
    unseen = {"id_similarity": None, "id_similarity_per_step": [None]}
    one = method({"a": face([0.1], **unseen), "b": face([0.2]), "c": face([0.3])}, "one")
    two = method({"a": face([0.1]), "b": face([0.2]), "c": face([0.2])}, "two")
    for sheet in (comparison([one, two]), per_step([one, two]), paired([one, two])):
        text = sheet.to_markdown()
        assert text.count("(n = 2)") == 1, text
    assert "(n = 2)" in per_bucket([one]).to_markdown()


def test_thirds_hold_all_faces_once_for_each_trait(method):
    faces = {str(i): face([i / 10], face_px=100.0 + i, yaw=None) for i in range(9)}
    sheet = per_bucket([method(faces)])
    size = [row for row in sheet.rows if row[0] == "face_px"]
    assert [row[1:3] for row in size] == [["100 to 102", 3], ["103 to 105", 3], ["106 to 108", 3]]
    assert [row[5].mean for row in size] == pytest.approx([0.1, 0.4, 0.7])
    assert not any(row[0] == "yaw" for row in sheet.rows)


def test_faces_whose_trait_is_not_known_are_a_bucket_of_their_own(method):
    faces = {str(i): face([0.1], yaw=None if i == 3 else i / 10) for i in range(4)}
    rows = [row for row in per_bucket([method(faces)]).rows if row[0] == "yaw"]
    assert rows[-1][1:3] == ["not known", 1]


def test_a_second_pass_says_that_the_first_is_not_in_its_cost(method):
    refined = method({"a": face([0.1], method="hybrid", refined_from="s-0/a#0")}, seconds=1.0)
    assert notes([refined]) == [
        "m: started from codes of another table, whose cost is not counted in seconds, steps and "
        "generator passes."
    ]


def test_a_metric_that_no_table_has_gets_no_column(method):
    unmeasured = {"id_similarity": None, "id_similarity_per_step": [None]}
    assert "ID ↑" not in comparison([method({"a": face([0.1], **unmeasured)})]).header
