"""Groups of duplicates are the components of all pairs above the threshold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, RequestError
from pipeline.search import duplicates as duplicates_module
from pipeline.search import vectors as vectors_module
from pipeline.search.duplicates import Components, find_duplicates, find_most_duplicates
from pipeline.search.vectors import Vectors
from pipeline.table import Table
from pipeline.table.selection import Selection
from tests.search.tables import drawn, table_of, unit

COUNT, DIMENSIONS, THRESHOLD = 50, 16, 0.97
CHAIN = (4, 40, 23)  # 4 and 23 are similar to 40 only
PAIR = (49, 0)


def planted() -> np.ndarray:
    """Return vectors of strangers, of a pair and of a chain."""
    rows = drawn(COUNT, DIMENSIONS)
    rows[PAIR[0]] = rows[PAIR[1]]
    middle, side = rows[CHAIN[1]], drawn(1, DIMENSIONS, seed=9)[0]
    side = unit(side - (side @ middle) * middle)
    for number, sign in ((CHAIN[0], 1), (CHAIN[2], -1)):
        rows[number] = unit(middle + sign * 0.2 * side)
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return table_of(tmp_path_factory.mktemp("faces") / "table", list(planted()))


@pytest.mark.parametrize("held", [1 << 30, 20 * DIMENSIONS * 4, 1])
def test_planted_groups_are_found_whatever_fits_in_memory(
    table: Table, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_NUMBERS", DIMENSIONS * 8)
    monkeypatch.setattr(vectors_module, "_READ_ROWS", 3)
    monkeypatch.setattr(duplicates_module, "_TILE", 5)
    result = find_duplicates(Vectors(Selection(table), "identity", held_bytes=held), THRESHOLD)
    groups = [sorted(PAIR), sorted(CHAIN)]
    assert result.ids.to_pylist() == [f"s-0/{n:04}#0" for group in groups for n in group]
    assert result.groups.tolist() == [0, 0, 1, 1, 1]
    assert (result.count, result.rows) == (2, COUNT)
    rows = planted()
    near = float(rows[CHAIN[0]] @ rows[CHAIN[1]])
    assert float(rows[CHAIN[0]] @ rows[CHAIN[2]]) < THRESHOLD < near
    assert result.similarities.tolist() == pytest.approx([1, 1, near, near, near], abs=1e-5)


@pytest.mark.parametrize("searched", [16, 2])  # of seven lists: all, or the nearest two
def test_an_approximate_search_finds_the_planted_groups(
    table: Table, searched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = Vectors(Selection(table), "identity")
    exact = find_duplicates(vectors, THRESHOLD)
    monkeypatch.setattr(duplicates_module, "_FEWEST_IN_LISTS", 0)
    monkeypatch.setattr(duplicates_module, "_LISTS_SEARCHED", searched)
    found = find_most_duplicates(vectors, THRESHOLD)
    assert found.ids == exact.ids
    assert found.groups.tolist() == exact.groups.tolist()
    assert found.similarities.tolist() == pytest.approx(exact.similarities.tolist(), abs=1e-5)
    assert found.rows == COUNT
    monkeypatch.setattr(duplicates_module, "memory_limit", lambda: COUNT)
    with pytest.raises(RequestError, match=r"of 50 faces take .* more than half"):
        find_most_duplicates(vectors, THRESHOLD)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RequestError, match=r"pip install 'restyle-pipeline\[search\]'"):
        find_most_duplicates(vectors, THRESHOLD)


def test_few_vectors_of_many_faces_are_compared_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_module, "_FEWEST_IN_LISTS", 5)
    monkeypatch.setattr(duplicates_module, "require_faiss", lambda: None)
    row = drawn(1)[0]
    for count in (0, 2):
        table = table_of(tmp_path / str(count), [row] * count + [None] * (10 - count))
        result = find_most_duplicates(Vectors(Selection(table), "identity"), THRESHOLD)
        assert (result.rows, len(result.ids)) == (count, count)


def test_order_decides_the_first_of_a_group(table: Table) -> None:
    result = find_duplicates(Vectors(Selection(table, order="key DESC"), "identity"), THRESHOLD)
    numbers = [int(name[4:8]) for name in result.ids.to_pylist()]
    assert numbers == [*sorted(PAIR, reverse=True), *sorted(CHAIN, reverse=True)]


def test_equal_faces_are_one_group(tmp_path: Path) -> None:
    table = table_of(tmp_path, [drawn(1)[0]] * 30)
    result = find_duplicates(Vectors(Selection(table), "identity"), 0.9999)
    assert (result.count, len(result.ids)) == (1, 30)
    none = find_duplicates(Vectors(Selection(table, where="key = '0001'"), "identity"), 0.9)
    assert (none.count, len(none.ids), none.rows) == (0, 0, 1)


@pytest.mark.parametrize("threshold", [-1, 1.5, float("nan")])
def test_a_threshold_is_a_similarity(table: Table, threshold: float) -> None:
    with pytest.raises(ConfigError, match="the threshold is a similarity above -1 and up to 1"):
        find_duplicates(Vectors(Selection(table), "identity"), threshold)


def test_components_are_those_of_a_flood_fill() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 300, (2, 220))
    components = Components()
    components.grow(150)
    inside = (first < 150) & (second < 150)
    components.join(first[inside], second[inside])
    components.grow(300)
    components.join(first[~inside], second[~inside])
    expected = np.arange(300)
    for _ in range(300):
        for one, other in zip(first, second, strict=True):
            expected[[one, other]] = min(expected[one], expected[other])
    assert components.parents.tolist() == expected.tolist()
