"""Arrays of many codes: read row by row, named by a list, written with their names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, InputError
from pipeline.interop.code_files import open_codes
from pipeline.interop.exporting import NamedSelection
from pipeline.interop.lineage import lineage_of
from pipeline.interop.stacked import export_stacked, read_names
from tests.interop.codes import Attack, codes
from tests.interop.tables import table_of
from tests.table.rows import code, face_row


def save(path: Path, array: np.ndarray, *, packed: bool = False) -> str:
    """Write the array in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        (np.savez_compressed if packed else np.savez)(path, w=array)
    else:
        torch.save(torch.from_numpy(array), path, _use_new_zipfile_serialization=not packed)
    return str(path)


def names_file(folder: Path, text: str) -> str:
    path = folder / "names.txt"
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("packed", [False, True])
def test_stacked_codes_are_numbered_in_order(tmp_path: Path, suffix: str, packed: bool) -> None:
    given = codes(3).astype(np.float16)
    opened = open_codes(save(tmp_path / f"latents{suffix}", given, packed=packed))
    assert (list(opened.names), opened.has_steps) == (["000000", "000001", "000002"], False)
    for index, name in enumerate(opened.names):
        np.testing.assert_array_equal(opened.read(name), given[None, index].astype(np.float32))


def test_list_names_the_stacked_codes(tmp_path: Path) -> None:
    source = save(tmp_path / "codes.npy", codes(2))
    opened = open_codes(source, names_file(tmp_path, "\ufeffb/2.jpg\r\na/1.jpg\r\n"))
    assert list(opened.names) == ["b/2.jpg", "a/1.jpg"]
    np.testing.assert_array_equal(opened.read("a/1.jpg"), codes(2)[1:])
    other = open_codes(source, names_file(tmp_path, "x\ny"))
    assert other.digest != opened.digest


def test_list_makes_each_row_a_w_code(tmp_path: Path) -> None:
    flat = codes(1)[0]
    source = save(tmp_path / "w.npy", flat)
    assert list(open_codes(source).names) == ["w"]
    opened = open_codes(source, names_file(tmp_path, "a\nb\nc\nd\n"))
    np.testing.assert_array_equal(opened.read("c"), flat[None, 2:3])


def test_projected_npz_is_named_like_its_file(tmp_path: Path) -> None:
    save(tmp_path / "projected_w.npz", codes(1))
    for uri in (tmp_path / "projected_w.npz", tmp_path):
        opened = open_codes(str(uri))
        assert list(opened.names) == ["projected_w"]
        np.testing.assert_array_equal(opened.read("projected_w"), codes(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "line 2 is empty"),
        ("a\nb\na\n", "'a' is in lines 1 and 3"),
        ("a\n", "has 2 codes, but '.*names.txt' has 1 names"),
    ],
)
def test_list_that_does_not_match_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = save(tmp_path / "codes.npy", codes(2))
    with pytest.raises(InputError, match=message):
        open_codes(source, names_file(tmp_path, text))


def test_list_is_refused_for_named_codes(tmp_path: Path) -> None:
    listed = names_file(tmp_path, "a\n")
    with pytest.raises(InputError, match="a folder, whose file names are used"):
        open_codes(str(tmp_path), listed)
    with pytest.raises(InputError, match="does not exist"):
        read_names(str(tmp_path / "nowhere.txt"))


def test_damaged_stacks_are_refused_in_one_line(tmp_path: Path) -> None:
    bad: dict[str, Any] = {
        "ints.npy": (codes(2).astype(np.int32), "values of type int32"),
        "thin.npy": (codes(2)[..., :100], r"expected \[n, n_styles, 512\]"),
        "turned.npy": (np.asfortranarray(codes(2)), "numpy.ascontiguousarray"),
    }
    for name, (array, message) in bad.items():
        with pytest.raises(InputError, match=message):
            open_codes(save(tmp_path / name, array))
    cut = tmp_path / "cut.npy"
    cut.write_bytes(Path(save(tmp_path / "whole.npy", codes(2))).read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        open_codes(str(cut))
    np.savez(tmp_path / "other.npz", z=codes(2))
    with pytest.raises(InputError, match=r"has no array 'w' \(found z\)"):
        open_codes(str(tmp_path / "other.npz"))
    torch.save([torch.zeros(2, 4, 512)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="has a list"):
        open_codes(str(tmp_path / "list.pt"))
    broken = codes(2)
    broken[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="'000001' has NaN or infinity"):
        open_codes(save(tmp_path / "nan.npy", broken)).read("000001")


def test_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", w=np.zeros((40_000, 2, 512), np.float32))
    with pytest.raises(InputError, match=r"refused, .* too much for codes"):
        open_codes(str(tmp_path / "bomb.npz"))


def test_code_in_a_stack_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save(Attack(trace), tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", w=np.array([Attack(trace)], dtype=object))
    for name in ("evil.pt", "evil.npz"):
        with pytest.raises(InputError):
            open_codes(str(tmp_path / name))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_stacked_export_has_a_list_of_names(tmp_path: Path, suffix: str) -> None:
    table = table_of(tmp_path / "t", face_row("b/2.jpg"), face_row("a/1.jpg"))
    target = tmp_path / "out" / f"codes{suffix}"
    written, listed = export_stacked(NamedSelection(table), str(target))
    assert (written, listed) == (2, str(tmp_path / "out" / "codes.names.txt"))
    raw = (
        torch.load(target, weights_only=True).numpy()
        if suffix == ".pt"
        else np.load(io.BytesIO(target.read_bytes()))
    )
    array = raw["w"] if suffix == ".npz" else raw
    np.testing.assert_array_equal(array, np.stack([code("b/2.jpg"), code("a/1.jpg")]))
    again = open_codes(str(target), listed)
    assert list(again.names) == ["2", "1"]
    np.testing.assert_array_equal(again.read("1")[0], code("a/1.jpg"))


def test_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", face_row("a\nb.jpg"))
    with pytest.raises(ConfigError, match="has a line break"):
        export_stacked(NamedSelection(table), str(tmp_path / "codes.npy"))
    assert not (tmp_path / "codes.npy").exists()


def test_lineage_matches_names_to_faces(tmp_path: Path) -> None:
    rows = [face_row("a/1.jpg"), face_row("b/1.jpg"), face_row("c.jpg"), face_row("c.jpg", 1)]
    table_of(tmp_path / "t", *rows)
    given = ["a/1", "1", "c", "c#1", "s-0/b/1.jpg#0", "new"]
    opened = lineage_of(given, str(tmp_path / "t"))
    assert opened.image_ids == {
        "a/1": "s-0/a/1.jpg#0",
        "c#1": "s-0/c.jpg#1",
        "s-0/b/1.jpg#0": "s-0/b/1.jpg#0",
    }
    assert opened.unmatched == 3
    with pytest.raises(ConfigError, match="no name of a code"):
        lineage_of(["new"], str(tmp_path / "t"))
    with pytest.raises(ConfigError, match="--refined-from: "):
        lineage_of(["new"], str(tmp_path / "nowhere"))
