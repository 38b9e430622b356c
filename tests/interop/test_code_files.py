"""Files of codes: formats that are read, files that are refused, and no execution of code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.interop.code_files import FaceName, faces_of, open_codes
from pipeline.interop.codes import read_code
from pipeline.interop.pickled_codes import latents_file
from tests.interop.codes import Attack, codes


def npy(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def pt(value: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def write(folder: Path, **files: bytes) -> str:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_folder_of_codes_is_named_by_paths(tmp_path: Path) -> None:
    code = codes(1)[0]
    root = write(tmp_path, a__1_npy=npy(code), a__2_pt=pt(torch.from_numpy(code)), note_txt=b"x")
    opened = open_codes(root)
    assert list(opened.names) == ["a/1", "a/2"]
    assert not opened.has_steps
    for name in opened.names:
        np.testing.assert_array_equal(opened.read(name), code[None])
    assert opened.uri_of("a/2") == f"{root}/a/2.pt"


def test_dictionary_is_read_with_its_steps(tmp_path: Path) -> None:
    root = write(tmp_path, latents_npy=latents_file({"1.jpg": codes(3)}))
    opened = open_codes(f"{root}/latents.npy")
    assert list(opened.names) == ["1.jpg"]
    assert opened.has_steps
    np.testing.assert_array_equal(opened.read("1.jpg"), codes(3))


def test_single_file_is_named_like_its_code(tmp_path: Path) -> None:
    write(tmp_path, face_npy=npy(codes(1)), other_npy=npy(codes(1)))
    opened = open_codes(str(tmp_path / "face.npy"))
    assert list(opened.names) == ["face"]


def test_digest_changes_with_the_codes(tmp_path: Path) -> None:
    root = write(tmp_path, a_npy=npy(codes(1)))
    before = open_codes(root).digest
    assert open_codes(root).digest == before
    write(tmp_path, b_npy=npy(codes(1)))
    assert open_codes(root).digest != before


@pytest.mark.parametrize("shape", [(4, 512), (1, 4, 512), (512,)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_code_is_read_in_common_shapes_and_dtypes(shape: tuple[int, ...], kind: Any) -> None:
    given = codes(1)[0].reshape(-1)[: int(np.prod(shape))].reshape(shape).astype(kind)
    for content, name in ((npy(given), "x.npy"), (pt(torch.from_numpy(given)), "x.pt")):
        opened = read_code(content, name)
        assert opened.dtype == np.float32
        assert opened.shape == (1, 1 if len(shape) == 1 else 4, 512)
        np.testing.assert_array_equal(opened.reshape(shape), given.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (npy(codes(5)), "x.npy", r"shape \[5, 4, 512\], expected one code"),
        (npy(np.zeros((4, 100), np.float32)), "x.npy", r"shape \[4, 100\]"),
        (npy(np.zeros((4, 512), np.int32)), "x.npy", "has values of type int32, expected floats"),
        (npy(np.full((4, 512), np.nan)), "x.npy", "NaN or infinity"),
        (npy(codes(1))[:200], "x.npy", "not a code, or damaged"),
        (b"", "x.npy", "not a code, or damaged"),
        (pt({"latent": torch.zeros(4, 512)}), "x.pt", "has a dict, expected one tensor"),
        (pt(torch.zeros(4, 512))[:300], "x.pt", "not a code, or damaged"),
        (b"", "x.pt", "not a code, or damaged"),
    ],
)
def test_files_without_a_code_are_refused(content: bytes, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_code(content, name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "x.pt"])
def test_malicious_code_file_is_not_executed(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "executed"
    object_array = npy(np.array({"a": Attack(trace)}, dtype=object))
    content = object_array if name == "x.npy" else pickle.dumps(Attack(trace), protocol=2)
    with pytest.raises(InputError, match="not a code, or damaged") as caught:
        read_code(content, name)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value), "PyTorch's own text offers to run it"


def test_face_numbers_are_parsed_from_names() -> None:
    assert faces_of(["b#1", "a/1.jpg", "b#0", "c#x"]) == [
        ("a/1.jpg", [FaceName("a/1.jpg", 0, "a/1.jpg")]),
        ("b", [FaceName("b", 0, "b#0"), FaceName("b", 1, "b#1")]),
        ("c#x", [FaceName("c#x", 0, "c#x")]),
    ]


def test_two_names_of_one_face_are_refused() -> None:
    with pytest.raises(InputError, match=r"same face: 'a' \(a, a#0\)"):
        faces_of(["a", "a#0", "b"])


def test_two_files_of_one_code_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, a_npy=npy(codes(1)), a_pt=pt(torch.zeros(4, 512)))
    with pytest.raises(InputError, match=r"same code name: 'a' \(a\.npy, a\.pt\)"):
        open_codes(root)


def test_file_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, notes_txt=b"x", face_npy=npy(codes(1)))
    with pytest.raises(
        InputError, match=r"notes.txt' is not a file of codes: .*npy, .npz, .pt, .*parquet or .tar$"
    ):
        open_codes(f"{root}/notes.txt")


def test_input_without_codes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no codes: expected"):
        open_codes(write(tmp_path, note_txt=b"x"))
    with pytest.raises(InputError, match="does not exist"):
        open_codes(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("claimed", [4, 1 << 20, 1 << 33])
def test_array_file_must_match_its_header(claimed: int) -> None:
    sink = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (claimed, 512)}
    np.lib.format.write_array_header_1_0(sink, header)
    with pytest.raises(InputError, match=rf"0 bytes for an array \[{claimed}, 512\] of float32"):
        read_code(sink.getvalue(), "x.npy")


def test_tensor_larger_than_its_storage_is_refused() -> None:
    for size in ((1, 1 << 30, 512), (1 << 30, 512), (512 << 20,)):
        with pytest.raises(InputError, match="is larger than its stored values"):
            read_code(pt(torch.zeros(1).expand(size)), "x.pt")
