"""Codes leave a table under names that stand for one face each."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.interop import exporting
from pipeline.interop.code_files import open_codes
from pipeline.interop.exporting import Selection, export_codes, export_dictionary
from pipeline.interop.pickled_codes import read_latents
from pipeline.interop.pictures import Kind, export_pictures
from pipeline.storage import Store
from pipeline.table import Columns, Table
from tests.interop.tables import table_of
from tests.table.rows import N_STYLES, code, face_row


def steps_of(key: str, count: int) -> np.ndarray:
    return np.stack([code(f"{key}{step}") for step in range(count)])


def test_a_dictionary_has_the_one_code_of_each_file(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("a/1.jpg"), face_row("b/2.PNG"))
    assert export_dictionary(Selection(table), str(tmp_path / "out" / "latents.npy")) == 2
    found = read_latents((tmp_path / "out" / "latents.npy").read_bytes(), "latents.npy")
    assert list(found) == ["1.jpg", "2.PNG"]
    np.testing.assert_array_equal(found["1.jpg"], code("a/1.jpg")[None])


def test_a_dictionary_has_all_steps_where_the_table_keeps_them(tmp_path: Path) -> None:
    rows = [face_row(f"{n}.jpg", steps=n, w_plus_per_step=steps_of(f"{n}.jpg", n)) for n in (1, 3)]
    table = table_of(tmp_path / "t", *rows, columns=Columns(N_STYLES, all_steps=True))
    export_dictionary(Selection(table), str(tmp_path / "latents.npy"))
    found = read_latents((tmp_path / "latents.npy").read_bytes(), "latents.npy")
    assert {name: len(steps) for name, steps in found.items()} == {"1.jpg": 1, "3.jpg": 3}
    np.testing.assert_array_equal(found["3.jpg"], steps_of("3.jpg", 3))


def test_names_that_stand_for_several_faces_are_refused_with_the_list(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "t", face_row("a/1.jpg"), face_row("b/1.jpg"), face_row("c", 0), face_row("c", 1)
    )
    with pytest.raises(ConfigError) as caught:
        export_dictionary(Selection(table), str(tmp_path / "latents.npy"))
    text = str(caught.value)
    assert text.startswith("2 names stand for several faces: '1.jpg' (s-0/a/1.jpg#0, s-0/b/1.jpg#0")
    assert "'c' (s-0/c#0, s-0/c#1)" in text
    assert not (tmp_path / "latents.npy").exists()


def test_files_that_differ_in_their_extension_alone_are_ambiguous_as_codes(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("1.png"))
    with pytest.raises(ConfigError, match=r"'1' \(s-0/1\.jpg#0, s-0/1\.png#0\)"):
        export_codes(Selection(table), str(tmp_path / "codes"))
    assert export_dictionary(Selection(table), str(tmp_path / "latents.npy")) == 2


def test_a_condition_or_image_ids_make_names_unique(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("a/1.jpg"), face_row("b/1.jpg", 0))
    chosen = Selection(table, where="key LIKE 'a/%' OR key = 'x'")
    assert export_codes(chosen, str(tmp_path / "one")) == 1
    assert export_codes(Selection(table, naming="id"), str(tmp_path / "ids")) == 2
    assert (tmp_path / "one" / "1.npy").is_file()
    assert (tmp_path / "ids" / "s-0" / "a" / "1.jpg#0.npy").is_file()


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_a_code_file_is_float32_and_plain(tmp_path: Path, form: Any) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"))
    export_codes(Selection(table), str(tmp_path), form)
    content = io.BytesIO((tmp_path / f"1.{form}").read_bytes())
    found = (
        np.load(content, allow_pickle=False)
        if form == "npy"
        else torch.load(content, weights_only=True).numpy()
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, code("1.jpg"))


def test_many_rows_come_in_the_tables_order(tmp_path: Path) -> None:
    keys = [f"{n:03d}.jpg" for n in range(100)]
    table = table_of(tmp_path / "t", *(face_row(key) for key in keys), part_size=100)
    rows = list(Selection(table).rows("w_plus"))
    assert [row["name"] for row in rows] == [key[:3] for key in keys]
    np.testing.assert_array_equal(rows[77]["w_plus"], code("077.jpg"))


def test_a_dictionary_beyond_memory_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("2.jpg"))
    monkeypatch.setattr(exporting, "LARGEST_DICTIONARY", 2 * N_STYLES * 2048 - 1)
    with pytest.raises(ConfigError, match=r"codes of 2 faces take .*\(--as codes\)"):
        export_dictionary(Selection(table), str(tmp_path / "latents.npy"))


def test_an_empty_choice_is_refused(tmp_path: Path) -> None:
    table, empty = table_of(tmp_path / "t", face_row("1.jpg")), table_of(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r'^--where "l2 > 100" chooses no face of the table'):
        export_codes(Selection(table, where="l2 > 100"), str(tmp_path / "codes"))
    with pytest.raises(ConfigError, match=r"^the table '.*empty' has no face to export"):
        export_codes(Selection(empty), str(tmp_path / "codes"))


ODD = ("../evil.jpg", "/etc/evil.jpg", "a//b.jpg", "a/./b.jpg", "a/b.jpg", ".x.jpg", "%2E.jpg")


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_names_that_are_other_places_stay_inside_and_are_read_back(
    tmp_path: Path, form: Any
) -> None:
    table = table_of(tmp_path / "t", *map(face_row, ODD), part_size=10)
    out = tmp_path / "out"
    assert export_codes(Selection(table, naming="id"), str(out), form) == len(ODD)
    assert sum(path.is_file() for path in tmp_path.rglob(f"*.{form}")) == len(ODD)
    assert sum(path.is_file() for path in out.rglob(f"*.{form}")) == len(ODD)
    codes = open_codes(str(out))
    assert set(codes.names) == {f"s-0/{key}#0" for key in ODD}
    for key in ODD:
        np.testing.assert_array_equal(codes.read(f"s-0/{key}#0")[0], code(key))


def test_a_name_that_no_disk_takes_is_refused_before_the_first_file(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("x" * 300))
    with pytest.raises(ConfigError, match="cannot be the name of a file"):
        export_codes(Selection(table, naming="id"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def write_codes(table: Table, out: str) -> int:
    return export_codes(Selection(table, naming="id"), out)


def write_torch_codes(table: Table, out: str) -> int:
    return export_codes(Selection(table, naming="id"), out, "pt")


def write_pictures(table: Table, out: str, kind: Kind = "images") -> int:
    return export_pictures(Selection(table, naming="id"), None, out, kind)  # type: ignore[arg-type]


FORMS = {
    "npy": write_codes,
    "pt": write_torch_codes,
    "png": write_pictures,
    "results": partial(write_pictures, kind="results"),
    "coupled": partial(write_pictures, kind="coupled"),
}
PICTURED = Columns(N_STYLES, all_steps=True, aligned_jpeg=True)


def pictured(key: str) -> dict[str, Any]:
    return face_row(key, w_plus_per_step=steps_of(key, 3), aligned_jpeg=b"")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_file_that_would_be_a_folder_is_refused_before_the_first(
    tmp_path: Path, form: str, place: str, request: pytest.FixtureRequest
) -> None:
    suffix = "npy" if form == "npy" else "pt" if form == "pt" else "png"
    keys = ["a", "a!", f"a#0.{suffix}/x/y", "a#0-b", "b"]
    table = table_of(tmp_path / "t", *map(pictured, keys), columns=PICTURED, part_size=10)
    bucket = request.getfixturevalue("s3").uri if place == "s3" else str(tmp_path)
    with pytest.raises(ConfigError, match=rf"the file of 's-0/a#0', s-0/a#0\.{suffix}, would have"):
        FORMS[form](table, f"{bucket}/out")
    assert Store(f"{bucket}/out").names() == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["x" * 300, "d/" * 2040 + "x", "ä" * 126])
def test_a_path_that_no_disk_takes_is_refused_before_the_first(
    tmp_path: Path, form: str, key: str
) -> None:
    rows = [pictured("1.jpg"), pictured(key)]
    table = table_of(tmp_path / "t", *rows, columns=PICTURED, part_size=10)
    with pytest.raises(ConfigError, match="cannot be the name of a file"):
        FORMS[form](table, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_names_of_every_length_that_a_disk_takes_are_written(tmp_path: Path) -> None:
    keys = ["x" * 249, "/".join(["y" * 200] * 10), "a#0", "a#0.npyx/b", "a/b"]
    table = table_of(tmp_path / "t", *map(face_row, keys), part_size=10)
    assert write_codes(table, str(tmp_path / "out")) == len(keys)
    assert set(open_codes(str(tmp_path / "out")).names) == {f"s-0/{key}#0" for key in keys}
