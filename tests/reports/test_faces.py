import numpy as np
import pyarrow as pa

from pipeline.reports.faces import read_face_scalars, repeat_last
from tests.reports.compared import face, write_table


def test_lists_repeat_their_last_number():
    lists = pa.array([[1.0, 2.0, 3.0], [4.0], [], None, [5.0, None]])
    expected = [[1, 2, 3], [4, 4, 4], [np.nan] * 3, [np.nan] * 3, [5, np.nan, np.nan]]
    np.testing.assert_array_equal(repeat_last(lists, 3), expected)


def test_faces_are_sorted_by_id(tmp_path):
    table = write_table(tmp_path, {"b": face([0.2]), "a": face([0.1]), "c": face([0.3])})
    faces = read_face_scalars(table)
    assert faces.ids.to_pylist() == ["s-0/a#0", "s-0/b#0", "s-0/c#0"]
    np.testing.assert_allclose(faces.quality["l2"], [0.1, 0.2, 0.3], rtol=1e-6)


def test_identity_is_first_and_psnr_excluded(tmp_path):
    faces = read_face_scalars(write_table(tmp_path, {"a": face([0.1])}))
    assert list(faces.quality) == list(faces.per_step) == ["id_similarity", "l2", "lpips"]


def test_missing_values_are_nan(tmp_path):
    unseen = face([0.1, 0.2], id_similarity=None, id_similarity_per_step=[None, 0.5])
    faces = read_face_scalars(write_table(tmp_path, {"a": unseen}))
    assert np.isnan(faces.quality["id_similarity"]).tolist() == [True]
    assert np.isnan(faces.per_step["id_similarity"]).tolist() == [[True, False]]


def test_yaw_is_compared_by_its_absolute_value(tmp_path):
    faces = read_face_scalars(
        write_table(tmp_path, {"a": face([0.1], yaw=-0.5), "b": face([0.1], yaw=0.25)})
    )
    assert faces.traits["yaw"].tolist() == [0.5, 0.25]


def test_empty_table_has_no_faces(tmp_path):
    faces = read_face_scalars(write_table(tmp_path, {}))
    assert (len(faces), faces.max_steps, faces.methods) == (0, 0, ())
