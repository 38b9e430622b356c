"""Codes in files: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.interop.code_files import FaceName, faces_of, open_codes, read_code
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


def test_a_folder_of_codes_is_read_by_its_paths(tmp_path: Path) -> None:
    code = codes(1)[0]
    root = write(tmp_path, a__1_npy=npy(code), a__2_pt=pt(torch.from_numpy(code)), note_txt=b"x")
    found = open_codes(root)
    assert list(found.names) == ["a/1", "a/2"]
    assert not found.has_steps
    for name in found.names:
        np.testing.assert_array_equal(found.read(name), code[None])
    assert found.uri_of("a/2") == f"{root}/a/2.pt"


def test_a_dictionary_is_read_with_its_steps(tmp_path: Path) -> None:
    root = write(tmp_path, latents_npy=latents_file({"1.jpg": codes(3)}))
    found = open_codes(f"{root}/latents.npy")
    assert list(found.names) == ["1.jpg"]
    assert found.has_steps
    np.testing.assert_array_equal(found.read("1.jpg"), codes(3))


def test_a_single_file_is_a_code_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, face_npy=npy(codes(1)), other_npy=npy(codes(1)))
    found = open_codes(str(tmp_path / "face.npy"))
    assert list(found.names) == ["face"]


def test_the_digest_changes_with_the_codes(tmp_path: Path) -> None:
    root = write(tmp_path, a_npy=npy(codes(1)))
    before = open_codes(root).digest
    assert open_codes(root).digest == before
    write(tmp_path, b_npy=npy(codes(1)))
    assert open_codes(root).digest != before


@pytest.mark.parametrize("shape", [(4, 512), (1, 4, 512), (512,)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_code_may_have_any_usual_form(shape: tuple[int, ...], kind: Any) -> None:
    given = codes(1)[0].reshape(-1)[: int(np.prod(shape))].reshape(shape).astype(kind)
    for content, name in ((npy(given), "x.npy"), (pt(torch.from_numpy(given)), "x.pt")):
        found = read_code(content, name)
        assert found.dtype == np.float32
        assert found.shape == (1, 1 if len(shape) == 1 else 4, 512)
        np.testing.assert_array_equal(found.reshape(shape), given.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (npy(codes(5)), "x.npy", r"shape \[5, 4, 512\], expected one code"),
        (npy(np.zeros((4, 100), np.float32)), "x.npy", r"shape \[4, 100\]"),
        (npy(np.zeros((4, 512), np.int32)), "x.npy", "holds int32, expected floats"),
        (npy(np.full((4, 512), np.nan)), "x.npy", "not finite"),
        (npy(codes(1))[:200], "x.npy", "no code, or damaged"),
        (b"", "x.npy", "no code, or damaged"),
        (pt({"latent": torch.zeros(4, 512)}), "x.pt", "holds a dict, expected one tensor"),
        (pt(torch.zeros(4, 512))[:300], "x.pt", "no code, or damaged"),
        (b"", "x.pt", "no code, or damaged"),
    ],
)
def test_what_is_no_code_is_named(content: bytes, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_code(content, name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "x.pt"])
def test_a_malicious_code_file_never_runs(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "executed"
    object_array = npy(np.array({"a": Attack(trace)}, dtype=object))
    content = object_array if name == "x.npy" else pickle.dumps(Attack(trace), protocol=2)
    with pytest.raises(InputError, match="no code, or damaged") as caught:
        read_code(content, name)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value), "PyTorch's own text offers to run it"


def test_face_numbers_are_taken_off_names() -> None:
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
    with pytest.raises(InputError, match=r"same code: 'a' \(a\.npy, a\.pt\)"):
        open_codes(root)


def test_a_file_of_another_type_is_named_and_not_its_folder(tmp_path: Path) -> None:
    root = write(tmp_path, notes_txt=b"x", face_npy=npy(codes(1)))
    with pytest.raises(
        InputError, match=r"notes.txt' is no file of codes: .*npy, .npz, .pt or .pth$"
    ):
        open_codes(f"{root}/notes.txt")


def test_an_input_without_codes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no codes: looked for"):
        open_codes(write(tmp_path, note_txt=b"x"))
    with pytest.raises(InputError, match="does not exist"):
        open_codes(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("claimed", [4, 1 << 20, 1 << 33])
def test_an_array_file_holds_what_its_header_claims(claimed: int) -> None:
    sink = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (claimed, 512)}
    np.lib.format.write_array_header_1_0(sink, header)
    with pytest.raises(InputError, match=rf"0 bytes for an array \[{claimed}, 512\] of float32"):
        read_code(sink.getvalue(), "x.npy")


def test_a_tensor_of_more_numbers_than_its_file_is_refused() -> None:
    for size in ((1, 1 << 30, 512), (1 << 30, 512), (512 << 20,)):
        with pytest.raises(InputError, match="claims more numbers than it holds"):
            read_code(pt(torch.zeros(1).expand(size)), "x.pt")
