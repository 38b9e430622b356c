import pytest

from pipeline.errors import RequestError
from pipeline.reports.evaluation import check_measured_alike, same_faces
from pipeline.reports.faces import read_face_scalars
from tests.reports.compared import face, write_table
from tests.table.rows import DESCRIPTION

LABELS = ("A", "B")


def tables(tmp_path, first, second, **second_description):
    return (
        write_table(tmp_path / "one", dict.fromkeys(first, face([0.2]))),
        write_table(tmp_path / "two", dict.fromkeys(second, face([0.1])), **second_description),
    )


def test_the_same_faces_are_taken_as_they_are(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abc", "cba")]
    one, two = same_faces(faces, LABELS, common=False)
    assert one.ids.equals(two.ids)
    assert len(one) == 3


def test_other_faces_are_refused_with_their_number_and_the_first_ids(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abcdefghi", "ijk")]
    with pytest.raises(RequestError, match="10 are not in all of them") as refusal:
        same_faces(faces, LABELS, common=False)
    message = str(refusal.value)
    assert "'s-0/a#0' of 'A'" in message
    assert message.count(" of '") == 5
    assert message.endswith("--common compares the 1 that are")
    assert "\n" not in message


def test_common_takes_the_faces_that_all_tables_hold(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abcd", "xcb")]
    one, two = same_faces(faces, LABELS, common=True)
    assert one.ids.to_pylist() == two.ids.to_pylist() == ["s-0/b#0", "s-0/c#0"]
    assert one.quality["l2"].round(3).tolist() == [0.2, 0.2]
    assert two.per_step["l2"].round(3).tolist() == [[0.1], [0.1]]


def test_nothing_in_common_is_refused(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "ab", "cd")]
    with pytest.raises(RequestError, match="no face to compare in common"):
        same_faces(faces, LABELS, common=True)


def test_an_id_that_stands_for_two_images_is_refused(tmp_path):
    one = write_table(tmp_path / "one", {"a": face([0.1]), "b": face([0.1])})
    two = write_table(
        tmp_path / "two", {"a": face([0.1]), "b": face([0.1], source_sha256="ef" * 32)}
    )
    with pytest.raises(RequestError, match=r"^1 faces .* from other images.*s-0/b"):
        same_faces([read_face_scalars(one), read_face_scalars(two)], LABELS, common=True)


def test_a_metric_that_is_defined_in_two_ways_is_named(tmp_path):
    other = {**DESCRIPTION.metrics, "lpips": "VGG16, version 0.1"}
    pair = tables(tmp_path, "a", "a", metrics=other)
    with pytest.raises(RequestError, match="'lpips' is another metric in 'B' than in 'A'") as found:
        check_measured_alike(pair, LABELS)
    assert "'l2'" not in str(found.value)


def test_a_metric_that_one_table_does_not_measure_is_no_other_metric(tmp_path):
    metrics = dict(DESCRIPTION.metrics)
    one = write_table(tmp_path / "one", {"a": face([0.1])}, metrics=metrics)
    two = write_table(
        tmp_path / "two", {"a": face([0.1])}, metrics={**metrics, "lpips": "not measured"}
    )
    assert check_measured_alike([one, two], LABELS) is None


def test_crops_of_another_size_are_measured_otherwise(tmp_path):
    pair = [
        write_table(
            tmp_path / str(side),
            {"a": face([0.1])},
            settings={"alignment": {"output_size": [side, side], "faces": choice}},
        )
        for side, choice in ((64, "largest"), (256, "all"))
    ]
    with pytest.raises(
        RequestError, match=r"output_size is \[64, 64\] in 'A' and \[256, 256\]"
    ) as e:
        check_measured_alike(pair, LABELS)
    assert "faces" not in str(e.value)
