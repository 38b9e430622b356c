import io
import tarfile

import numpy as np
import pytest

from pipeline.errors import InputError, RequestError
from pipeline.reports.faces import read_face_scalars
from pipeline.reports.ground_truth import METRIC, with_distances
from pipeline.table import Columns
from tests.reports.compared import face, write_table
from tests.table.rows import N_STYLES

SHAPE = (N_STYLES, 512)


def write_pairs(folder, codes, name="s-0.tar"):
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as archive:
        for key, code in codes.items():
            sink = io.BytesIO()
            np.save(sink, code)
            for suffix, content in ((".jpg", b"image"), (".w.npy", sink.getvalue())):
                info = tarfile.TarInfo(key + suffix)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(folder)


def stored(*levels):
    """Return a face whose code has the value `levels[step]` everywhere in each step."""
    codes = np.stack([np.full(SHAPE, level, np.float32) for level in levels])
    return face([0.1] * len(levels), w_plus=codes[-1], w_plus_per_step=codes)


def steps_table(tmp_path, faces):
    return write_table(tmp_path / "table", faces, columns=Columns(N_STYLES, all_steps=True))


def test_distance_is_the_rms_to_the_true_code(tmp_path):
    table = steps_table(tmp_path, {"a": stored(4.0, 2.0), "b": stored(1.0, 1.0)})
    true = {"a": np.full(512, 1.0, np.float16), "b": np.full(SHAPE, 0.5, np.float32)}
    faces, _ = with_distances(table, read_face_scalars(table), write_pairs(tmp_path / "in", true))
    assert faces.quality[METRIC].tolist() == [1.0, 0.5]
    assert faces.per_step[METRIC].tolist() == [[3.0, 1.0], [0.5, 0.5]]


def test_stopped_face_repeats_its_last_distance(tmp_path):
    table = steps_table(tmp_path, {"a": stored(4.0), "b": stored(3.0, 2.0, 1.0)})
    true = dict.fromkeys("ab", np.zeros(512, np.float16))
    faces, _ = with_distances(table, read_face_scalars(table), write_pairs(tmp_path / "in", true))
    assert faces.per_step[METRIC].tolist() == [[4.0, 4.0, 4.0], [3.0, 2.0, 1.0]]


def test_rows_have_separate_distances(tmp_path):
    code = np.zeros(SHAPE, np.float32)
    code[2] = 3.0
    table = write_table(tmp_path / "table", {"a": face([0.1], w_plus=code)})
    pairs = write_pairs(tmp_path / "in", {"a": np.zeros(512, np.float16)})
    _, truth = with_distances(table, read_face_scalars(table), pairs)
    assert truth.by_row == [0.0, 0.0, 3.0, 0.0, 0.0, 0.0]


def test_spread_is_the_distance_to_the_mean_code(tmp_path):
    table = write_table(tmp_path / "table", {"a": face([0.1]), "b": face([0.1])})
    true = {"a": np.full(512, 1.0, np.float16), "b": np.full(512, 5.0, np.float16)}
    _, truth = with_distances(table, read_face_scalars(table), write_pairs(tmp_path / "in", true))
    assert truth.spread == pytest.approx(2.0)


def test_table_without_steps_has_one_distance(tmp_path):
    table = write_table(tmp_path / "table", {"a": face([0.2, 0.1])})
    pairs = write_pairs(tmp_path / "in", {"a": np.zeros(512, np.float16)})
    faces, _ = with_distances(table, read_face_scalars(table), pairs)
    assert faces.quality[METRIC] == pytest.approx(1.0, abs=0.1)  # standard normal codes
    assert np.isnan(faces.per_step[METRIC]).tolist() == [[True, True]]


def test_face_without_a_pair_has_no_distance(tmp_path):
    table = write_table(tmp_path / "table", {"a": face([0.1]), "b": face([0.1])})
    pairs = write_pairs(tmp_path / "in", {"b": np.zeros(512, np.float16)})
    faces, _ = with_distances(table, read_face_scalars(table), pairs)
    assert np.isnan(faces.quality[METRIC]).tolist() == [True, False]


def test_pairs_of_another_input_are_refused(tmp_path):
    table = write_table(tmp_path / "table", {"a": face([0.1])})
    pairs = write_pairs(tmp_path / "in", {"a": np.zeros(512, np.float16)}, "other.tar")
    with pytest.raises(RequestError, match=r"has no pair .* give the input that the table"):
        with_distances(table, read_face_scalars(table), pairs)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (np.zeros(100, np.float32), r"float32 \[100\], not a code"),
        (np.zeros((3, 512), np.float32), "has 3 rows, but the table.s have 6"),
        (np.array([{"a": 1}], object), "not a numpy array"),
    ],
)
def test_invalid_codes_are_refused(tmp_path, code, message):
    table = write_table(tmp_path / "table", {"a": face([0.1])})
    with pytest.raises((InputError, RequestError), match=message):
        with_distances(table, read_face_scalars(table), write_pairs(tmp_path / "in", {"a": code}))
