"""Promises of the keys of a shard."""

from __future__ import annotations

import random

import pytest

from pipeline.storage.sample import UniqueKeys


def first_free(used: list[str], *candidates: str) -> str:
    """The key as it is defined, by looking through all numbers."""
    numbered = [f"{candidates[-1]}~{count}" for count in range(2, len(used) + 3)]
    return next(name for name in (*candidates, *numbered) if name and name not in used)


def test_a_key_is_the_first_that_is_free() -> None:
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
def test_equal_keys_cost_no_more_than_others() -> None:
    keys = UniqueKeys()
    assert [keys.take("a") for _ in range(30_000)][-1] == "a~30000"
