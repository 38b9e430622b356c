import pytest

from pipeline.errors import RequestError
from pipeline.reports.evaluation import check_same_definitions, same_faces
from pipeline.reports.faces import read_face_scalars
from tests.reports.compared import face, write_table
from tests.table.rows import DESCRIPTION

LABELS = ("A", "B")


def tables(tmp_path, first, second, **second_description):
    return (
        write_table(tmp_path / "one", dict.fromkeys(first, face([0.2]))),
        write_table(tmp_path / "two", dict.fromkeys(second, face([0.1])), **second_description),
    )


def test_equal_faces_are_compared_in_order(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abc", "cba")]
    first, second = same_faces(faces, LABELS, common=False)
    assert first.ids.equals(second.ids)
    assert len(first) == 3


def test_different_faces_are_refused_with_their_ids(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abcdefghi", "ijk")]
    with pytest.raises(RequestError, match="10 are not in all tables") as refusal:
        same_faces(faces, LABELS, common=False)
    message = str(refusal.value)
    assert "'s-0/a#0' of 'A'" in message
    assert message.count(" of '") == 5
    assert message.endswith("--common compares the 1 that are")
    assert "\n" not in message


def test_common_selects_faces_of_all_tables(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "abcd", "xcb")]
    first, second = same_faces(faces, LABELS, common=True)
    assert first.ids.to_pylist() == second.ids.to_pylist() == ["s-0/b#0", "s-0/c#0"]
    assert first.quality["l2"].round(3).tolist() == [0.2, 0.2]
    assert second.per_step["l2"].round(3).tolist() == [[0.1], [0.1]]


def test_no_common_face_is_refused(tmp_path):
    faces = [read_face_scalars(table) for table in tables(tmp_path, "ab", "cd")]
    with pytest.raises(RequestError, match="no faces to compare in common"):
        same_faces(faces, LABELS, common=True)


def test_one_id_of_two_images_is_refused(tmp_path):
    first = write_table(tmp_path / "one", {"a": face([0.1]), "b": face([0.1])})
    second = write_table(
        tmp_path / "two", {"a": face([0.1]), "b": face([0.1], source_sha256="ef" * 32)}
    )
    with pytest.raises(RequestError, match=r"^1 faces .* from different images.*s-0/b"):
        same_faces([read_face_scalars(first), read_face_scalars(second)], LABELS, common=True)


def test_different_metric_definitions_are_named(tmp_path):
    other = {**DESCRIPTION.metrics, "lpips": "VGG16, version 0.1"}
    pair = tables(tmp_path, "a", "a", metrics=other)
    with pytest.raises(RequestError, match="'lpips' is defined differently in 'B'") as refusal:
        check_same_definitions(pair, LABELS)
    assert "'l2'" not in str(refusal.value)


def test_unmeasured_metric_is_not_a_difference(tmp_path):
    metrics = dict(DESCRIPTION.metrics)
    first = write_table(tmp_path / "one", {"a": face([0.1])}, metrics=metrics)
    second = write_table(
        tmp_path / "two", {"a": face([0.1])}, metrics={**metrics, "lpips": "not measured"}
    )
    assert check_same_definitions([first, second], LABELS) is None


def test_crops_of_different_sizes_are_refused(tmp_path):
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
        check_same_definitions(pair, LABELS)
    assert "faces" not in str(e.value)
