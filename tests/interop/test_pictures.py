"""Pictures are the model's renders, in the layout of the published scripts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, ModelError
from pipeline.interop.exporting import NamedSelection
from pipeline.interop.pictures import Drawing, export_pictures
from pipeline.inversion.render import render_each
from pipeline.models import RestyleModel, load_model
from pipeline.table import Columns, Table
from pipeline.table.model_lookup import model_of
from tests.interop.tables import table_of
from tests.table.rows import face_row

N_STYLES = 10


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    return load_model(tiny_bundle)


def code(seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_normal((N_STYLES, 512))
    return draws.astype(np.float16).astype(np.float32)


def jpeg() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def table(model: RestyleModel, tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = [
        face_row(
            f"a/{n}.jpg",
            w_plus=code(n),
            w_plus_per_step=np.stack([code(n + 10), code(n)]),
            aligned_jpeg=jpeg(),
        )
        for n in (1, 2)
    ]
    table: Table = table_of(
        tmp_path_factory.mktemp("pictures") / "t",
        *rows,
        columns=Columns(N_STYLES, all_steps=True, aligned_jpeg=True),
        settings={"model": model.fingerprint},
        config={"model": tiny_bundle},
    )
    return table


def rendered(model: RestyleModel, *seeds: int) -> list[np.ndarray]:
    """Render codes with the generator, rounded to 8 bits."""
    with torch.no_grad():
        images = model.generator(torch.from_numpy(np.stack([code(seed) for seed in seeds])))
    scaled = ((images.clamp(-1, 1).numpy() + 1) * 127.5).round()
    return list(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether all levels differ by at most 1, as rounding depends on the batch."""
    return bool(np.abs(actual.astype(int) - expected).max() <= 1)


def test_images_are_of_the_best_step(table: Table, model: RestyleModel, tmp_path: Path) -> None:
    assert export_pictures(NamedSelection(table), model, str(tmp_path), "images") == 2
    assert close(read(tmp_path / "2.png"), rendered(model, 2)[0])


def test_results_have_one_folder_per_step(
    table: Table, model: RestyleModel, tmp_path: Path
) -> None:
    assert export_pictures(NamedSelection(table), model, str(tmp_path), "results") == 4
    first, last = rendered(model, 11, 1)
    assert close(read(tmp_path / "0" / "1.png"), first)
    assert close(read(tmp_path / "1" / "1.png"), last)


def test_coupled_pictures_end_with_the_input(
    table: Table, model: RestyleModel, tmp_path: Path
) -> None:
    assert export_pictures(NamedSelection(table), model, str(tmp_path), "coupled") == 2
    pixels = read(tmp_path / "1.png")
    assert pixels.shape == (64, 3 * 64, 3)
    assert close(pixels[:, :128], np.concatenate(rendered(model, 11, 1), axis=1))
    assert pixels[32, 160, 0] > 250


@pytest.mark.parametrize(
    ("kind", "flag"), [("results", "--keep-steps"), ("coupled", "--keep-steps")]
)
def test_missing_columns_are_named_with_their_flag(
    model: RestyleModel, tmp_path: Path, kind: Any, flag: str
) -> None:
    plain = table_of(
        tmp_path / "t", face_row("1", w_plus=code(1)), columns=Columns(N_STYLES), settings={}
    )
    with pytest.raises(ConfigError, match=flag):
        export_pictures(NamedSelection(plain), model, str(tmp_path / "out"), kind)


def test_codes_of_another_model_are_refused(
    table: Table, model: RestyleModel, tiny_bundle: str
) -> None:
    assert model_of(table).fingerprint == model.fingerprint
    assert model_of(table, tiny_bundle).fingerprint == model.fingerprint
    with pytest.raises(ModelError, match="belong to another model than 'demo'"):
        model_of(table, "demo")


def test_pictures_of_escaped_names_stay_inside(model: RestyleModel, tmp_path: Path) -> None:
    steps = np.stack([code(1)])
    row = face_row("../../evil.jpg", w_plus=code(1), w_plus_per_step=steps)
    columns = Columns(N_STYLES, all_steps=True)
    odd = table_of(tmp_path / "t", row, columns=columns)
    assert (
        export_pictures(NamedSelection(odd, naming="id"), model, str(tmp_path / "out"), "results")
        == 1
    )
    (picture,) = tmp_path.rglob("*.png")
    assert picture == tmp_path / "out/0/s-0/%2E./%2E./evil.jpg#0.png"


def test_small_truncated_pictures_match_the_published_scripts(
    model: RestyleModel, table: Table, tmp_path: Path
) -> None:
    side = model.generator_size // 2
    drawing = Drawing(side, truncate=True)
    assert export_pictures(NamedSelection(table), model, str(tmp_path), "images", drawing) == 2
    with torch.no_grad():
        (frame,) = render_each(model, torch.from_numpy(code(1))[None])
        # The published scripts' `tensor2im` on a pooled frame, in numpy.
        small = torch.nn.AdaptiveAvgPool2d((side, side))(frame[None])[0].numpy()
    levels = (np.clip((small + 1) / 2, 0, 1) * 255).astype("uint8").transpose(1, 2, 0)
    np.testing.assert_array_equal(read(tmp_path / "1.png"), levels)


@pytest.mark.parametrize("width", [48, 128])
def test_other_sizes_keep_the_aspect_ratio(width: int) -> None:
    frame = torch.linspace(-1, 1, 3 * 48 * 64).reshape(3, 48, 64)
    assert Drawing(width).pixels(frame).shape == (width * 3 // 4, width, 3)
    flat = Drawing(width).pixels(torch.full((3, 48, 64), 0.5))
    assert (flat == 191).all()
