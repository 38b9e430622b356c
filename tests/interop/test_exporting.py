"""Exported codes have one unambiguous name per face."""

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
from pipeline.interop.exporting import NamedSelection, export_codes, export_dictionary
from pipeline.interop.pickled_codes import read_latents
from pipeline.interop.pictures import Kind, export_pictures
from pipeline.storage import Store
from pipeline.table import Columns, Table
from tests.interop.tables import table_of
from tests.table.rows import N_STYLES, code, face_row


def steps_of(key: str, count: int) -> np.ndarray:
    return np.stack([code(f"{key}{step}") for step in range(count)])


def test_dictionary_has_one_code_per_file(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("a/1.jpg"), face_row("b/2.PNG"))
    assert export_dictionary(NamedSelection(table), str(tmp_path / "out" / "latents.npy")) == 2
    exported = read_latents((tmp_path / "out" / "latents.npy").read_bytes(), "latents.npy")
    assert list(exported) == ["1.jpg", "2.PNG"]
    np.testing.assert_array_equal(exported["1.jpg"], code("a/1.jpg")[None])


def test_dictionary_has_all_steps_of_the_table(tmp_path: Path) -> None:
    rows = [face_row(f"{n}.jpg", steps=n, w_plus_per_step=steps_of(f"{n}.jpg", n)) for n in (1, 3)]
    table = table_of(tmp_path / "t", *rows, columns=Columns(N_STYLES, all_steps=True))
    export_dictionary(NamedSelection(table), str(tmp_path / "latents.npy"))
    exported = read_latents((tmp_path / "latents.npy").read_bytes(), "latents.npy")
    assert {name: len(steps) for name, steps in exported.items()} == {"1.jpg": 1, "3.jpg": 3}
    np.testing.assert_array_equal(exported["3.jpg"], steps_of("3.jpg", 3))


def test_ambiguous_names_are_refused_with_the_list(tmp_path: Path) -> None:
    table = table_of(
        tmp_path / "t", face_row("a/1.jpg"), face_row("b/1.jpg"), face_row("c", 0), face_row("c", 1)
    )
    with pytest.raises(ConfigError) as caught:
        export_dictionary(NamedSelection(table), str(tmp_path / "latents.npy"))
    text = str(caught.value)
    assert text.startswith(
        "2 names are shared by several faces: '1.jpg' (s-0/a/1.jpg#0, s-0/b/1.jpg#0"
    )
    assert "'c' (s-0/c#0, s-0/c#1)" in text
    assert not (tmp_path / "latents.npy").exists()


def test_equal_names_up_to_extension_are_ambiguous(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("1.png"))
    with pytest.raises(ConfigError, match=r"'1' \(s-0/1\.jpg#0, s-0/1\.png#0\)"):
        export_codes(NamedSelection(table), str(tmp_path / "codes"))
    assert export_dictionary(NamedSelection(table), str(tmp_path / "latents.npy")) == 2


def test_condition_or_image_ids_resolve_ambiguity(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("a/1.jpg"), face_row("b/1.jpg", 0))
    chosen = NamedSelection(table, where="key LIKE 'a/%' OR key = 'x'")
    assert export_codes(chosen, str(tmp_path / "one")) == 1
    assert export_codes(NamedSelection(table, naming="id"), str(tmp_path / "ids")) == 2
    assert (tmp_path / "one" / "1.npy").is_file()
    assert (tmp_path / "ids" / "s-0" / "a" / "1.jpg#0.npy").is_file()


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_code_file_is_a_float32_array(tmp_path: Path, form: Any) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"))
    export_codes(NamedSelection(table), str(tmp_path), form)
    content = io.BytesIO((tmp_path / f"1.{form}").read_bytes())
    exported = (
        np.load(content, allow_pickle=False)
        if form == "npy"
        else torch.load(content, weights_only=True).numpy()
    )
    assert exported.dtype == np.float32
    np.testing.assert_array_equal(exported, code("1.jpg"))


def test_rows_are_exported_in_table_order(tmp_path: Path) -> None:
    keys = [f"{n:03d}.jpg" for n in range(100)]
    table = table_of(tmp_path / "t", *(face_row(key) for key in keys), part_size=100)
    rows = list(NamedSelection(table).named_rows("w_plus"))
    assert [row["name"] for row in rows] == [key[:3] for key in keys]
    np.testing.assert_array_equal(rows[77]["w_plus"], code("077.jpg"))


def test_names_are_the_same_in_sql_and_python(tmp_path: Path) -> None:
    keys = (
        "a/1.jpg",
        "2.JPEG",
        ".png",
        "jpg",
        "3.x",
        "4.png.jpg",
        "5.jpg\n",
        "\n.jpg",
        "é.webp",
        "6.",
    )
    selection = NamedSelection(table_of(tmp_path / "t", *map(face_row, keys), part_size=10))
    for row in selection.named_rows("key"):
        assert row["name"] == selection.name_of(row["key"], row["image_id"]) != ""


def test_too_large_dictionary_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("2.jpg"))
    monkeypatch.setattr(exporting, "MAX_DICTIONARY_BYTES", 2 * N_STYLES * 2048 - 1)
    with pytest.raises(ConfigError, match=r"codes of 2 faces take .*\(--as codes\)"):
        export_dictionary(NamedSelection(table), str(tmp_path / "latents.npy"))


def test_empty_selection_is_refused(tmp_path: Path) -> None:
    table, empty = table_of(tmp_path / "t", face_row("1.jpg")), table_of(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r'^--where "l2 > 100" selects no face of the table'):
        export_codes(NamedSelection(table, where="l2 > 100"), str(tmp_path / "codes"))
    with pytest.raises(ConfigError, match=r"^the table '.*empty' has no faces$"):
        export_codes(NamedSelection(empty), str(tmp_path / "codes"))


ODD = ("../evil.jpg", "/etc/evil.jpg", "a//b.jpg", "a/./b.jpg", "a/b.jpg", ".x.jpg", "%2E.jpg")


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_escaped_names_round_trip_inside_the_folder(tmp_path: Path, form: Any) -> None:
    table = table_of(tmp_path / "t", *map(face_row, ODD), part_size=10)
    out = tmp_path / "out"
    assert export_codes(NamedSelection(table, naming="id"), str(out), form) == len(ODD)
    assert sum(path.is_file() for path in tmp_path.rglob(f"*.{form}")) == len(ODD)
    assert sum(path.is_file() for path in out.rglob(f"*.{form}")) == len(ODD)
    codes = open_codes(str(out))
    assert set(codes.names) == {f"s-0/{key}#0" for key in ODD}
    for key in ODD:
        np.testing.assert_array_equal(codes.read(f"s-0/{key}#0")[0], code(key))


def test_too_long_name_is_refused_before_writing(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("1.jpg"), face_row("x" * 300))
    with pytest.raises(ConfigError, match="is not a possible file name"):
        export_codes(NamedSelection(table, naming="id"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def write_codes(table: Table, out: str) -> int:
    return export_codes(NamedSelection(table, naming="id"), out)


def write_torch_codes(table: Table, out: str) -> int:
    return export_codes(NamedSelection(table, naming="id"), out, "pt")


def write_pictures(table: Table, out: str, kind: Kind = "images") -> int:
    return export_pictures(NamedSelection(table, naming="id"), None, out, kind)  # type: ignore[arg-type]


FORMS = {
    "npy": write_codes,
    "pt": write_torch_codes,
    "png": write_pictures,
    "results": partial(write_pictures, kind="results"),
    "coupled": partial(write_pictures, kind="coupled"),
}
PICTURED = Columns(N_STYLES, all_steps=True, aligned_jpeg=True)


def row_of_all_columns(key: str) -> dict[str, Any]:
    return face_row(key, w_plus_per_step=steps_of(key, 3), aligned_jpeg=b"")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_file_and_folder_conflict_is_refused_before_writing(
    tmp_path: Path, form: str, place: str, request: pytest.FixtureRequest
) -> None:
    suffix = "npy" if form == "npy" else "pt" if form == "pt" else "png"
    keys = ["a", "a!", f"a#0.{suffix}/x/y", "a#0-b", "b"]
    table = table_of(tmp_path / "t", *map(row_of_all_columns, keys), columns=PICTURED, part_size=10)
    bucket = request.getfixturevalue("s3").uri if place == "s3" else str(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"'s-0/a#0\.{suffix}', the file of 's-0/a#0', would also be"
    ):
        FORMS[form](table, f"{bucket}/out")
    assert Store(f"{bucket}/out").names() == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["x" * 300, "d/" * 2040 + "x", "ä" * 126])
def test_too_long_path_is_refused_before_writing(tmp_path: Path, form: str, key: str) -> None:
    rows = [row_of_all_columns("1.jpg"), row_of_all_columns(key)]
    table = table_of(tmp_path / "t", *rows, columns=PICTURED, part_size=10)
    with pytest.raises(ConfigError, match="is not a possible file name"):
        FORMS[form](table, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_longest_possible_names_are_written(tmp_path: Path) -> None:
    keys = ["x" * 249, "/".join(["y" * 200] * 10), "a#0", "a#0.npyx/b", "a/b"]
    table = table_of(tmp_path / "t", *map(face_row, keys), part_size=10)
    assert write_codes(table, str(tmp_path / "out")) == len(keys)
    assert set(open_codes(str(tmp_path / "out")).names) == {f"s-0/{key}#0" for key in keys}
