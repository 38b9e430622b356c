"""A dictionary of codes is read without running it; everything else in a pickle is refused."""

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
    """A numpy file of one object, as numpy writes it, or with another pickle protocol."""
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
def test_what_numpy_saved_is_read(protocol: int | None) -> None:
    given = {"a.jpg": list(codes()), "b.png": list(codes(seed=1))}
    found = read_latents(saved(given, protocol), "latents.npy")
    assert list(found) == ["a.jpg", "b.png"]
    for name, steps in given.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], np.stack(steps))


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
def test_other_forms_of_the_same_code_are_taken(value: Any) -> None:
    found = read_latents(saved(OrderedDict({"a": value})), "latents.npy")
    np.testing.assert_array_equal(found["a"][0], codes()[0])


def test_plain_numpy_reads_what_is_written() -> None:
    given = {"a.jpg": codes(3), "b.jpg": codes(1, seed=1)}
    # Our own bytes; nothing in the library itself reads a pickle so.
    found = np.load(io.BytesIO(latents_file(given)), allow_pickle=True).item()
    assert [len(found[name]) for name in given] == [3, 1]
    assert isinstance(found["a.jpg"], list)
    assert found["a.jpg"][0].dtype == np.float32
    np.testing.assert_array_equal(found["a.jpg"][-1], given["a.jpg"][-1])


def test_what_is_written_is_read() -> None:
    given = {"a.jpg": codes(3), "Zürich/b.jpg": codes(1, seed=1)}
    found = read_latents(latents_file(given), "latents.npy")
    assert all(np.array_equal(found[name], given[name]) for name in given)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_is_refused_by_name_and_never_runs(
    tmp_path: Path, protocol: int
) -> None:
    trace = tmp_path / "executed"
    with pytest.raises(InputError, match=r"x\.npy: refused, it names (posix|nt)\.mkdir"):
        read_latents(saved({"a": Attack(trace)}, protocol), "x.npy")
    assert not trace.exists()


def test_a_program_around_the_dictionary_never_runs(tmp_path: Path) -> None:
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
    ("value", "said"),
    [
        ("text", "holds an array .* of <U4, expected a dictionary"),
        ({}, "holds a dict, expected a dictionary of codes"),
        ({1: codes()}, "has the key 1"),
        ({"a": "text"}, "holds a str where codes should be"),
        ({"a": []}, "holds a list where codes should be"),
        ({"a": codes()[0].astype(np.int32)}, "type 'i4', expected floats"),
        ({"a": codes()[..., :100]}, r"'a' has shape \[2, 4, 100\]"),
        ({"a": np.zeros((0, 4, 512), np.float32)}, r"'a' has shape \[0, 4, 512\]"),
        ({"a": codes() * np.inf}, "'a' holds numbers that are not finite"),
        ({"a": [codes()[0], codes(1, 6)[0]]}, "damaged"),
    ],
)
def test_what_is_no_dictionary_of_codes_is_named(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_latents(saved(value), "x.npy")
    assert str(caught.value).startswith("x.npy: ")
    assert "\n" not in str(caught.value)


def test_a_plain_array_is_told_from_a_dictionary() -> None:
    with pytest.raises(InputError, match=r"an array \[2, 4, 512\] of float32, expected a dict"):
        read_latents(saved(codes()), "x.npy")


@pytest.mark.parametrize("keep", [0, 5, 60, 130, 400, -1])
def test_a_file_that_ends_early_is_refused(keep: int) -> None:
    with pytest.raises(InputError, match=r"x\.npy: "):
        read_latents(saved({"a": list(codes())})[:keep], "x.npy")


def test_an_array_that_claims_more_than_it_holds_is_refused() -> None:
    content = saved({"a": codes(1)})
    claimed = content.replace(b"K\x01K\x04M\x00\x02", b"K\x01K\x05M\x00\x02")
    assert claimed != content
    with pytest.raises(InputError, match="bytes for an array"):
        read_latents(claimed, "x.npy")


def test_damage_anywhere_ends_in_a_refusal_or_in_codes() -> None:
    content = saved({"a": list(codes(1, 2))})
    end = content.index(b"\n") + 300
    for position in range(end):
        for flip in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= flip
            with suppress(InputError):
                found = read_latents(bytes(damaged), "x.npy")
                assert all(np.isfinite(steps).all() for steps in found.values())


@pytest.mark.parametrize("name", HUNGRY)
def test_a_small_file_never_takes_much_memory(name: str) -> None:
    content = HUNGRY[name]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^x\.npy: "):
            read_latents(content, "x.npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(content) + (16 << 20)


def test_an_array_made_of_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="a int in place of an array's bytes"):
        read_latents(HUNGRY["zeros from a number"], "x.npy")


def test_a_code_may_stand_for_several_images() -> None:
    code = codes(2)
    given = {name: list(code) for name in ("a.jpg", "b.jpg", "c.jpg")}
    found = read_latents(saved({**given, "d.jpg": given["a.jpg"]}), "latents.npy")
    assert all(np.array_equal(steps, code) for steps in found.values())
