"""Promises of samples and of the keys of a shard."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.images import RejectReason
from pipeline.storage import Sample, Shard, read_samples
from pipeline.storage.sample import MAX_KEY_BYTES, ShortenedKey, UniqueKeys
from tests.storage.archives import only_shard, write_parquet, write_tar


def first_free(used: list[str], *candidates: str) -> str:
    """Return the key by its definition, trying all numbers."""
    numbered = [f"{candidates[-1]}~{count}" for count in range(2, len(used) + 3)]
    return next(name for name in (*candidates, *numbered) if name and name not in used)


def test_key_is_the_first_free_candidate() -> None:
    words = ["a", "a~2", "a~3", "a~2~2", "b", "b~4"]
    for seed in range(50):
        chosen = random.Random(seed)
        keys, used = UniqueKeys(), list[str]()
        for _ in range(60):
            candidates = chosen.choices(words, k=chosen.randint(1, 2))
            expected = first_free(used, *candidates)
            used.append(keys.take(*candidates))
            assert used[-1] == expected


@pytest.mark.timeout(10)
def test_many_equal_keys_are_fast() -> None:
    keys = UniqueKeys()
    assert [keys.take("a") for _ in range(30_000)][-1] == "a~30000"


def names_of(length: int) -> list[str]:
    """Return four names of `length` bytes that differ in the last character, two of them equal."""
    stem = "a" * (length - 2 - 3 * ((length - 2) // 6)) + "語" * ((length - 2) // 6)
    return [f"{stem}/{last}" for last in "xyzz"]


def in_a_tar(folder: Path, names: list[str]) -> Shard:
    return only_shard(write_tar(folder / "s.tar", [(f"{name}.jpg", b"i") for name in names]))


def in_parquet(folder: Path, names: list[str]) -> Shard:
    columns = {"image": [b"i"] * len(names), "key": names}
    return only_shard(write_parquet(folder / "s.parquet", columns))


@pytest.mark.parametrize("write", [in_a_tar, in_parquet])
def test_key_over_the_limit_is_a_reject(
    tmp_path: Path, write: Callable[[Path, list[str]], Shard]
) -> None:
    for length in (MAX_KEY_BYTES + 1, 300_000):
        names = names_of(length)
        samples = list(read_samples(write(tmp_path / str(length), ["short", *names])))
        short, *others = samples
        assert (short.key, short.content, short.reject) == ("short", b"i", "")
        assert {sample.reject for sample in others} == {RejectReason.KEY_TOO_LONG}
        assert {sample.content for sample in others} == {b""}
        assert others[0].detail == f"a key of {length} bytes, of at most 4096 that are kept"
        assert len({sample.key for sample in others}) == 4
        assert all(sample.key.startswith("aaaa") for sample in others)
        assert max(len(sample.key.encode()) for sample in others) < 300
        assert max(len(sample.uri.encode()) for sample in others) < 9000


@pytest.mark.parametrize("write", [in_a_tar, in_parquet])
def test_key_at_the_limit_is_kept(
    tmp_path: Path, write: Callable[[Path, list[str]], Shard]
) -> None:
    names = names_of(MAX_KEY_BYTES)[:3]
    samples = list(read_samples(write(tmp_path, names)))
    assert [sample.key for sample in samples] == names
    assert {sample.reject for sample in samples} == {""}


def test_keys_of_a_folder_have_the_same_limit() -> None:
    shard = Shard("files-00000", "s3://in", "folder", 2, "e", ("b" * 5000, "c"), (1, 1))
    long, short = shard.keys
    assert isinstance(long, ShortenedKey)
    assert (long.size, short) == (5000, "c")


def test_equal_long_keys_are_shortened_equally() -> None:
    """A shard that is read again gets the same keys."""
    keys = [UniqueKeys().take("k" * 5000), UniqueKeys().take("k" * 5000)]
    assert keys[0] == keys[1]
    assert keys[0] != UniqueKeys().take("k" * 5001)


def test_long_uris_and_details_are_shortened() -> None:
    sample = Sample(
        "a", "s3://" + "u" * 10**6, b"", "unsupported_format", "a link to " + "l" * 10**6
    )
    assert len(sample.uri) < 300
    assert len(sample.detail) < 300
    assert sample.detail.startswith("a link to ")
