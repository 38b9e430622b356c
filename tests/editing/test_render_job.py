"""`restyle render`: what is written follows the name of the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jobs.render_latents as job
from pipeline.interop.pictures import Drawing, frames_of
from pipeline.models import RestyleModel
from pipeline.table import Table
from tests.editing.conftest import TableMaker, code

IDS = ["s-0/0.jpg#0", "s-0/1.jpg#0", "s-0/2.jpg#0"]
MARGIN, STEP, SIDE = 12, 68, 64


@pytest.fixture
def table(make_table: TableMaker) -> Table:
    return make_table(lpips=[0.2, 0.3, 0.1], width=[500, 700, 700])


def render(
    capsys: pytest.CaptureFixture[str], table: Table, output: Path, *flags: str
) -> dict[str, Any]:
    code = job.main(["--table", table.store.root, "--output", str(output), *flags])
    result = capsys.readouterr()
    assert code == 0, result.err
    line: dict[str, Any] = json.loads(result.out)
    return line


def cells(path: Path, count: int) -> list[np.ndarray]:
    """Return the pictures of a grid of one row, as integers."""
    grid = np.asarray(Image.open(path)).astype(int)
    places = [MARGIN + index * STEP for index in range(count)]
    return [grid[MARGIN : MARGIN + SIDE, x : x + SIDE] for x in places]


def frame(model: RestyleModel, w_plus: np.ndarray, **how: Any) -> np.ndarray:
    return frames_of(model, w_plus[None], Drawing(**how))[0].astype(int)


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether all levels differ by at most 1, as rounding depends on the batch."""
    return bool(np.abs(actual - expected).max() <= 1)


def test_grid_shows_faces_in_their_order(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "grid.png"
    line = render(capsys, table, output, "--order", "lpips DESC", "--limit", "2")
    expected = {"output": str(output), "as": "grid", "pictures": 2, "width": 156, "height": 88}
    assert line == expected
    worst, second = cells(output, 2)
    assert close(worst, frame(model, code(1)))
    assert close(second, frame(model, code(0)))


def test_truncation_moves_faces_to_the_average(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average = model.latent_avg.numpy()
    for psi in ("0", "0.5"):
        render(capsys, table, tmp_path / "t.png", "--ids", IDS[0], "--truncation", psi)
        (picture,) = cells(tmp_path / "t.png", 1)
        moved = (average + float(psi) * (code(0) - average)).astype(np.float32)
        assert close(picture, frame(model, moved))


def test_walk_of_a_grid_has_the_codes_between(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--ids", IDS[2], IDS[0], "--frames", "3")
    assert render(capsys, table, tmp_path / "w.png", *flags)["pictures"] == 3
    first, middle, last = cells(tmp_path / "w.png", 3)
    assert close(first, frame(model, code(2)))
    assert close(middle, frame(model, (code(2) + code(0)) / 2))
    assert close(last, frame(model, code(0)))


def test_walk_over_a_selection_is_an_animation(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--where", "width = 700", "--frames", "5", "--closed", "--size", "32", "--fps", "10")
    line = render(capsys, table, tmp_path / "w.webp", *flags)
    assert (line["as"], line["pictures"], line["width"], line["height"]) == ("animation", 8, 32, 32)
    with Image.open(tmp_path / "w.webp") as animation:
        assert (animation.n_frames, animation.size) == (8, (32, 32))


def test_mix_stands_behind_its_faces(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(capsys, table, tmp_path / "m.png", "--mix", f"{IDS[0]}:0-3", f"{IDS[1]}:4-")
    grid = np.asarray(Image.open(tmp_path / "m.png")).astype(int)
    x = MARGIN + 2 * (128 + 4) + 32
    mixed = np.concatenate([code(0)[:4], code(1)[4:]])
    assert close(grid[MARGIN : MARGIN + SIDE, x : x + SIDE], frame(model, mixed))


def test_group_means_are_drawn_below_the_expression(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = render(capsys, table, tmp_path / "g.png", "--group-by", "width > 600")
    assert line["pictures"] == 2
    grid = np.asarray(Image.open(tmp_path / "g.png")).astype(int)
    top, x = MARGIN + 34, MARGIN + 132 + 32
    mean = (code(1) + code(2)) / 2
    assert close(grid[top : top + SIDE, x : x + SIDE], frame(model, mean))


def test_folder_gets_a_picture_per_face(
    table: Table, model: RestyleModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--size", "crop", "--truncation", "0.5", "--where", "width = 500")
    assert render(capsys, table, tmp_path / "out", *flags)["pictures"] == 1
    picture = np.asarray(Image.open(tmp_path / "out" / "0.png")).astype(int)
    assert close(picture, frame(model, code(0), psi=0.5))


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("x.jpg", [], "name a grid *.png, an animation .webp, .gif, .mp4, or a folder"),
        ("x.webp", ["--columns", "2"], "--columns is for a grid (*.png), not for an animation"),
        ("x.gif", ["--mix", "a:0-"], "--mix is for a grid"),
        ("x.png", ["--fps", "9"], "--fps is for an animation"),
        ("x.gif", ["--fps", "60"], "1 to 50 frames per second"),
        (
            "out",
            ["--frames", "3"],
            "a grid (*.png) or an animation, not for a folder",
        ),
        ("x.png", ["--closed"], "--closed is for walks: give --frames too"),
        ("x.png", ["--ids", "a", "--where", "true"], "--where chooses faces, but --ids names them"),
        ("x.png", ["--ids", "a", "--group-by", "l2"], "--group-by and --ids do not go together"),
        ("x.png", ["--mix", "a:0-", "--frames", "3"], "--frames is for walks, not for --mix"),
        ("x.png", ["--mix", "a:0-3"], "rows 4-9 are given by no face"),
        ("x.png", ["--ids", "a/b#0"], "has no 'a/b#0'"),
        ("x.png", ["--where", "width < 0"], '--where "width < 0" selects no face'),
        ("x.webp", ["--limit", "1"], "a walk needs at least two faces"),
        ("x.png", ["--frames", "1"], "at least 2 pictures, got 1"),
        ("x.png", ["--order", "lpips; DROP"], "order 'lpips; DROP' failed"),
        ("x.png", ["--group-by", "nothing"], "nothing"),
        ("x.png", ["--truncation", "nan"], "'nan' is not a number"),
        ("x.png", ["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_request_is_one_line_and_writes_nothing(
    table: Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
    flags: list[str],
    message: str,
) -> None:
    try:
        code = job.main(["--table", table.store.root, "--output", str(tmp_path / output), *flags])
    except SystemExit as ended:  # argparse ends so
        code = int(ended.code or 0)
    result = capsys.readouterr()
    line = json.loads(result.out.splitlines()[-1])
    assert code == line["exit_code"] == 2
    assert message in line["errors"][0]
    assert not (tmp_path / output).exists()
