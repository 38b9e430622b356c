"""Direction files of every published form are read, and hostile ones refused in one line."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_safetensors

from pipeline.editing.directions import (
    Direction,
    built_in_names,
    read_direction,
    save_direction,
)
from pipeline.editing.w_space import WSpace, w_space_of
from pipeline.errors import ConfigError, InputError, RequestError
from pipeline.models import load_model

ROW = np.random.default_rng(0).standard_normal(512).astype(np.float32)
ROWS = np.random.default_rng(1).standard_normal((18, 512)).astype(np.float32)
SPACE = WSpace("demo", "a" * 64, "b" * 64)


def file_of(folder: Path, suffix: str, array: np.ndarray) -> str:
    """Write an array in the form that `suffix` names; return the path."""
    path = folder / f"smile{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez_compressed(path, boundary=array)
    elif suffix == ".safetensors":
        path.write_bytes(save_safetensors({"smile": array}))
    else:
        torch.save(torch.from_numpy(array), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize(
    "array", [ROW, ROW[None], ROW[None, None].astype("f8"), ROWS, ROWS[None]], ids=lambda a: a.shape
)
def test_all_forms_give_the_same_rows(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    direction = read_direction(file_of(tmp_path, suffix, array))
    assert (direction.name, direction.rows.dtype) == ("smile", np.float32)
    np.testing.assert_array_equal(direction.rows, array.reshape(-1, 512).astype(np.float32))


def test_rows_fit_to_the_model() -> None:
    one, note = Direction("one", ROW[None]).for_styles(10)
    assert (one.shape, note) == ((10, 512), "")
    cut, note = Direction("many", ROWS).for_styles(10)
    np.testing.assert_array_equal(cut, ROWS[:10])
    assert note == "direction 'many' has 18 rows, of which the first 10 are used"
    with pytest.raises(ConfigError, match="has 4 rows, but a code of this model has 10"):
        Direction("few", ROWS[:4]).for_styles(10)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_components_are_scaled_by_their_deviation(tmp_path: Path, suffix: str) -> None:
    components, deviations = ROWS[:3, None], np.array([2, 1, 0.5], np.float32)
    path = tmp_path / f"pca{suffix}"
    if suffix == ".pt":
        named = {"mean": ROW[None], "comp": components, "std": deviations}
        torch.save({name: torch.from_numpy(array) for name, array in named.items()}, path)
    else:
        np.savez(path, lat_comp=components, lat_stdev=deviations, lat_mean=ROW)
    direction = read_direction(f"{path}:2")
    assert direction.name == "pca-2"
    np.testing.assert_array_equal(direction.rows, 0.5 * components[2])
    for text in (str(path), f"{path}:3", f"{path}:-1", f"{path}:x"):
        with pytest.raises(InputError, match="has 3 components: choose one by its number"):
            read_direction(text)


def test_a_named_direction_of_a_file_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    path.write_bytes(save_safetensors({"age": ROW, "smile": ROWS[0]}))
    np.testing.assert_array_equal(read_direction(f"{path}:smile").rows[0], ROWS[0])
    with pytest.raises(InputError, match=r"has 2 arrays \('age', 'smile'\): choose one"):
        read_direction(str(path))


def test_our_own_file_keeps_name_model_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save_direction(Direction("smile", ROWS, SPACE, {"r2": 0.5})))
    direction = read_direction(str(path))
    assert (direction.name, direction.w_space, direction.facts) == ("smile", SPACE, {"r2": 0.5})
    assert direction.check_model(WSpace("other encoder", "a" * 64, "c" * 64)) == ""
    assert direction.check_model(WSpace("fine-tuned", "c" * 64, "b" * 64)) == ""
    with pytest.raises(ConfigError, match="is for the W space of the model 'demo'"):
        direction.check_model(WSpace("cars", "c" * 64, "c" * 64))
    assert "does not say" in Direction("foreign", ROWS).check_model(SPACE)


class _Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def _bomb() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(65 << 20))
    return sink.getvalue()


def _saved(value: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _forged_record() -> bytes:
    return save_safetensors({"direction": ROW}, {"restyle_direction": '{"w_space": 1}'})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", _saved(_Harmful()), "holds the class"),
        ("b.npy", _npy(np.array([{}, 1], object)), "Object arrays cannot be loaded"),
        ("c.npz", _bomb(), "refused, it unpacks to more than 64 MB"),
        ("d.pt", _saved(torch.zeros(1).expand(1 << 30, 512)), "expanded or shared"),
        ("e.npy", _npy(ROW)[:-4], "2044 bytes for an array"),
        ("f.pt", b"", "damaged"),
        ("g.safetensors", b"\xff" * 20, "damaged"),
        ("h.safetensors", _forged_record(), "its record of a W space is damaged"),
        ("i.npy", _npy(np.full(512, np.nan, np.float32)), "has NaN or infinity"),
        ("j.npy", _npy(np.full(512, 1e300)), "has NaN or infinity"),
        ("k.npy", _npy(np.zeros(512, np.float32)), "is zero everywhere"),
        ("l.npy", _npy(np.ones(512, int)), "expected floats"),
        ("m.npy", _npy(np.ones((2, 3, 256), np.float32)), r"has shape \[2, 3, 256\], expected"),
        ("n.npy", _npy(np.ones((65, 512), np.float32)), r"has shape \[65, 512\], expected"),
        ("o.pt", _saved(["smile"]), "has a list, expected a tensor"),
        ("p.pt", _saved({"x": 1}), r"found nothing"),
        ("q.txt", b"", "no direction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=said) as refused:
        read_direction(str(path))
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match="there is no direction file"):
        read_direction("/no/such.pt")


def test_built_in_directions_are_for_the_demo_models() -> None:
    names = built_in_names()
    assert names == ["age", "pose", "smile"]
    space = w_space_of(load_model("demo"))
    assert [read_direction(name).check_model(space) for name in names] == ["", "", ""]


def test_published_directions_are_read(shared: Path) -> None:
    folder = shared / "directions"
    shapes = {"age.pt": 1, "smile.pt": 1, "pose.pt": 18, "ganspace_ffhq_pca.pt:79": 1}
    assert {name: len(read_direction(f"{folder}/{name}").rows) for name in shapes} == shapes
