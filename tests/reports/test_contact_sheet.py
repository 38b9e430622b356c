import importlib
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ShapeError
from pipeline.reports.contact_sheet import (
    ACCENT,
    GAP,
    MARGIN,
    PAPER,
    SheetRow,
    contact_sheet,
    drawable,
)

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


def plain(colour, size=(16, 16)):
    return np.full((*size, 3), colour, np.uint8)


def row(size=(16, 16), **options) -> SheetRow:
    target, average, *steps = (plain(colour, size) for colour in COLOURS)
    return SheetRow(target, average, steps, **options)


def pixels(sheet: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_pictures_are_target_average_then_steps():
    sheet = pixels(contact_sheet([row()], cell_width=100))
    middle = [MARGIN + column * (100 + GAP) + 50 for column in range(4)]
    line = sheet[100, middle]
    assert [tuple(map(int, colour)) for colour in line] == COLOURS


def test_bootstrap_steps_come_before_the_steps():
    target, average, initial, step = (plain(colour) for colour in COLOURS)
    bootstrapped = SheetRow(target, average, [step], [initial], best_step=1)
    sheet = pixels(contact_sheet([bootstrapped], cell_width=100, step_name="cartoon"))
    middle = [MARGIN + column * (100 + GAP) + 50 for column in range(4)]
    assert [tuple(map(int, colour)) for colour in sheet[100, middle]] == COLOURS
    framed = np.nonzero((sheet == ACCENT).all(axis=2))[1]
    assert framed.min() == MARGIN + 3 * (100 + GAP) - 3


def test_row_of_fewer_steps_ends_earlier():
    short = SheetRow(*(plain(colour) for colour in COLOURS[:2]), [plain(COLOURS[2])], best_step=1)
    sheet = pixels(contact_sheet([short, row()], cell_width=100))
    last = sheet[:, MARGIN + 3 * (100 + GAP) :]
    top = MARGIN + 26
    assert (last[top : top + 100] == PAPER).all()
    assert (last == COLOURS[3]).all(axis=2).sum() == 100 * 100


def test_each_face_adds_one_row():
    heights = [len(pixels(contact_sheet([row()] * count))) for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 144


def test_wide_pictures_keep_their_aspect_ratio():
    wide = len(pixels(contact_sheet([row((12, 16))], cell_width=160)))
    square = len(pixels(contact_sheet([row((16, 16))], cell_width=160)))
    assert square - wide == 40


def test_only_the_best_step_is_framed():
    sheet = pixels(contact_sheet([row(best_step=2)], cell_width=100))
    framed = np.nonzero((sheet == ACCENT).all(axis=2))[1]
    left = MARGIN + 3 * (100 + GAP)
    assert (framed.min(), framed.max()) == (left - 3, left + 102)
    assert not (pixels(contact_sheet([row()])) == ACCENT).all(axis=2).any()


def test_captions_have_the_metrics_of_each_step():
    captions = row(label="a/1.jpg", l2=[0.0521, 0.04], lpips=[0.171, float("nan")]).captions()
    assert captions == ["a/1.jpg", "", "L2 0.052  LPIPS 0.17", "L2 0.040  LPIPS nan"]


def test_labels_use_characters_of_the_font():
    assert drawable("Zoë/Ünal (1).jpg") == "Zoe/Unal (1).jpg"
    assert drawable("e\u0301cole") == "ecole"
    assert drawable("中/a\nb") == "\\u4e2d/a\\nb"
    accented, plain = (contact_sheet([row(label=label)]) for label in ("Zoë", "Zoe"))
    assert accented == plain
    assert contact_sheet([row(label="中")]) != contact_sheet([row(label="日")])


def test_long_label_is_shortened_to_its_end():
    label = "bucket/" * 20 + "0001.jpg"
    sheet = pixels(contact_sheet([row(label=label)], cell_width=100))
    gap = sheet[:, MARGIN + 100 : MARGIN + 100 + GAP]
    assert (gap[60:] == PAPER).all()


def test_long_label_needs_few_measurements(monkeypatch):
    """Check that the number of measurements does not grow with the label's length."""
    module = importlib.import_module("pipeline.reports.contact_sheet")
    font, measured = module.font(12), []

    class Measuring:
        def getlength(self, text):
            measured.append(len(text))
            return font.getlength(text)

    monkeypatch.setattr(module, "font", lambda _: Measuring())
    short = module.fitting("k" * 200 + "end", 100)
    assert short.startswith("…")
    assert short.endswith("kend")
    assert module.fitting("k" * 1_000_000 + "end", 100) == short
    assert sum(measured) < 50_000


def test_equal_rows_give_equal_bytes():
    rows = [row(label="a", l2=[0.1, 0.2])]
    assert contact_sheet(rows, title="t") == contact_sheet(rows, title="t")


@pytest.mark.parametrize(
    "rows", [[], [row(), row((8, 8))], [row(), row(bootstrap=[plain(COLOURS[0])])]]
)
def test_unequal_rows_are_refused(rows):
    with pytest.raises(ShapeError, match="contact sheet needs"):
        contact_sheet(rows)


def test_float_pictures_are_refused():
    broken = SheetRow(np.zeros((8, 8, 3)), plain((0, 0, 0), (8, 8)), [])
    with pytest.raises(ShapeError, match="uint8"):
        contact_sheet([broken])
