import io
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RequestError
from pipeline.reports.coarse_to_fine import Change, band_names
from pipeline.reports.evaluation import Method
from pipeline.reports.faces import read_face_scalars
from pipeline.reports.plots import change_in_steps, quality_against_time
from pipeline.reports.requirements import require_matplotlib
from pipeline.reports.statistics import Interval
from tests.reports.compared import face, write_table

BLUE, ORANGE = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def columns_of(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    return np.flatnonzero((pixels(png) == colour).all(axis=2).any(axis=0))


@pytest.fixture
def method(tmp_path):
    def make(label: str, *l2: float, seconds: float | None = None) -> Method:
        faces = {key: face(l2) for key in "abc"}
        return Method(label, read_face_scalars(write_table(tmp_path / label, faces)), seconds)

    return make


def test_each_method_has_one_colour_in_all_panels(method):
    png = quality_against_time([method("one", 0.3, 0.2, 0.1, seconds=1.0), method("two", 0.2)])
    height, width, _ = pixels(png).shape
    assert width > 3 * height / 1.2
    for colour in (BLUE, ORANGE):
        panels = np.unique(columns_of(png, colour) * 3 // width)
        assert panels.tolist() == [0, 1, 2]


def test_labels_are_never_formulas(method):
    label = r"$\nothing$"
    assert quality_against_time([method(label, 0.1)])
    change = Change([], [], [], band_names(8), faces=0, rendered=0, without_start=0)
    assert change_in_steps({label: change})


def test_slower_method_is_further_right(method):
    png = quality_against_time([method("a", 0.1, seconds=1.0), method("b", 0.1, seconds=50.0)])
    assert columns_of(png, BLUE).min() < columns_of(png, ORANGE).min()


def test_method_without_a_metric_is_not_in_its_panel(method, tmp_path):
    unmeasured = {"id_similarity": None, "id_similarity_per_step": [None]}
    table = write_table(tmp_path / "t", {"a": face([0.1], **unmeasured)})
    png = quality_against_time([method("one", 0.2), Method("two", read_face_scalars(table), None)])
    width = pixels(png).shape[1]
    assert np.unique(columns_of(png, ORANGE) * 3 // width).tolist() == [1, 2]


def test_equal_values_give_equal_bytes(method):
    methods = [method("one", 0.3, 0.2, seconds=1.0)]
    assert quality_against_time(methods) == quality_against_time(methods)


def test_change_plot_has_one_row_per_table():
    step = [Interval(3, 0.5, 0.1)] * 10
    bands = [Interval(3, 0.5, 0.1)] * 5
    nothing = [Interval(0, float("nan"), float("nan"))] * 10
    change = Change([nothing, step], [], [nothing[:5], bands], band_names(64), 3, 3, 3)
    single, double = (
        pixels(change_in_steps(dict.fromkeys(names, change))) for names in ("a", "ab")
    )
    assert double.shape == (2 * len(single), *single.shape[1:])


def test_missing_matplotlib_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"restyle-pipeline\[reports\]"):
        require_matplotlib()
