"""Dictionaries of codes are read without executing them; other pickles are refused."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.interop.pickled_codes import latents_file, read_latents
from tests.interop.codes import Attack, codes
from tests.interop.hungry import HUNGRY


def saved(value: Any, protocol: int | None = None) -> bytes:
    """Return a numpy file of one object, as numpy writes it or with another protocol."""
    sink = io.BytesIO()
    np.save(sink, value)
    if protocol is None:
        return sink.getvalue()
    outer = np.empty((), object)
    outer[()] = value
    header = sink.getvalue()
    end = header.index(b"\n") + 1
    return header[:end] + pickle.dumps(outer, protocol=protocol)


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_dictionary_saved_by_numpy_is_read(protocol: int | None) -> None:
    given = {"a.jpg": list(codes()), "b.png": list(codes(seed=1))}
    loaded = read_latents(saved(given, protocol), "latents.npy")
    assert list(loaded) == ["a.jpg", "b.png"]
    for name, steps in given.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], np.stack(steps))


@pytest.mark.parametrize(
    "value",
    [
        codes()[0],
        codes(1),
        [codes()[0].astype(np.float64)],
        [codes()[0].astype(">f4")],
        [np.asfortranarray(codes()[0])],
        (codes()[0],),
    ],
)
def test_other_layouts_of_a_code_are_read(value: Any) -> None:
    loaded = read_latents(saved(OrderedDict({"a": value})), "latents.npy")
    np.testing.assert_array_equal(loaded["a"][0], codes()[0])


def test_numpy_reads_the_written_dictionary() -> None:
    given = {"a.jpg": codes(3), "b.jpg": codes(1, seed=1)}
    # These bytes are trusted; the library never allows pickles.
    loaded = np.load(io.BytesIO(latents_file(given)), allow_pickle=True).item()
    assert [len(loaded[name]) for name in given] == [3, 1]
    assert isinstance(loaded["a.jpg"], list)
    assert loaded["a.jpg"][0].dtype == np.float32
    np.testing.assert_array_equal(loaded["a.jpg"][-1], given["a.jpg"][-1])


def test_written_dictionary_round_trips() -> None:
    given = {"a.jpg": codes(3), "Zürich/b.jpg": codes(1, seed=1)}
    loaded = read_latents(latents_file(given), "latents.npy")
    assert all(np.array_equal(loaded[name], given[name]) for name in given)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "executed"
    with pytest.raises(InputError, match=r"x\.npy: refused, it names (posix|nt)\.mkdir"):
        read_latents(saved({"a": Attack(trace)}, protocol), "x.npy")
    assert not trace.exists()


def test_code_around_the_dictionary_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    header = saved({})
    for program in (
        pickle.dumps(Attack(trace)),
        f"cbuiltins\neval\n(S'__import__(\"os\").mkdir({str(trace)!r})'\ntR.".encode(),
        b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR.",
    ):
        with pytest.raises(InputError, match="refused, it names"):
            read_latents(header[: header.index(b"\n") + 1] + program, "x.npy")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "has an array .* of <U4, expected a dictionary"),
        ({}, "has a dict, expected a dictionary of codes"),
        ({1: codes()}, "has the key 1"),
        ({"a": "text"}, "has a str in place of codes"),
        ({"a": []}, "has a list in place of codes"),
        ({"a": codes()[0].astype(np.int32)}, "type 'i4', expected floats"),
        ({"a": codes()[..., :100]}, r"'a' has shape \[2, 4, 100\]"),
        ({"a": np.zeros((0, 4, 512), np.float32)}, r"'a' has shape \[0, 4, 512\]"),
        ({"a": codes() * np.inf}, "'a' has NaN or infinity"),
        ({"a": [codes()[0], codes(1, 6)[0]]}, "damaged"),
    ],
)
def test_other_contents_are_refused_by_type(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_latents(saved(value), "x.npy")
    assert str(caught.value).startswith("x.npy: ")
    assert "\n" not in str(caught.value)


def test_plain_array_is_not_a_dictionary() -> None:
    with pytest.raises(InputError, match=r"an array \[2, 4, 512\] of float32, expected a dict"):
        read_latents(saved(codes()), "x.npy")


@pytest.mark.parametrize("keep", [0, 5, 60, 130, 400, -1])
def test_truncated_file_is_refused(keep: int) -> None:
    with pytest.raises(InputError, match=r"x\.npy: "):
        read_latents(saved({"a": list(codes())})[:keep], "x.npy")


def test_array_larger_than_its_bytes_is_refused() -> None:
    content = saved({"a": codes(1)})
    claimed = content.replace(b"K\x01K\x04M\x00\x02", b"K\x01K\x05M\x00\x02")
    assert claimed != content
    with pytest.raises(InputError, match="bytes for an array"):
        read_latents(claimed, "x.npy")


def test_damage_gives_an_error_or_finite_codes() -> None:
    content = saved({"a": list(codes(1, 2))})
    end = content.index(b"\n") + 300
    for position in range(end):
        for flip in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= flip
            with suppress(InputError):
                loaded = read_latents(bytes(damaged), "x.npy")
                assert all(np.isfinite(steps).all() for steps in loaded.values())


@pytest.mark.parametrize("name", HUNGRY)
def test_small_file_needs_little_memory(name: str) -> None:
    content = HUNGRY[name]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^x\.npy: "):
            read_latents(content, "x.npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(content) + (16 << 20)


def test_array_with_a_number_for_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="a int in place of an array's bytes"):
        read_latents(HUNGRY["zeros from a number"], "x.npy")


def test_images_may_share_one_code() -> None:
    code = codes(2)
    given = {name: list(code) for name in ("a.jpg", "b.jpg", "c.jpg")}
    loaded = read_latents(saved({**given, "d.jpg": given["a.jpg"]}), "latents.npy")
    assert all(np.array_equal(steps, code) for steps in loaded.values())
