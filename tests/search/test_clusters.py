"""k-means finds separated bunches, repeatably."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, RequestError
from pipeline.search import vectors as vectors_module
from pipeline.search.clusters import find_clusters
from pipeline.search.vectors import Vectors
from pipeline.table import Table
from pipeline.table.selection import Selection
from tests.search.tables import drawn, table_of, unit

SIZES = (25, 15, 10)
KINDS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), SIZES))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Three bunches around directions of their own, mixed."""
    directions = drawn(3, seed=1)
    rows = unit(directions[KINDS] + 0.3 * drawn(sum(SIZES), seed=2))
    return table_of(tmp_path_factory.mktemp("faces") / "table", list(rows))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bunches_are_found_largest_first(
    table: Table, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_NUMBERS", 16 * 7)
    monkeypatch.setattr(vectors_module, "_READ_ROWS", 3)
    vectors = Vectors(Selection(table), "identity")
    result = find_clusters(vectors, 3, seed)
    assert (result.sizes, result.converged) == (list(SIZES), True)
    assigned = list(result.assign(vectors))
    assert np.concatenate([part.clusters for part in assigned]).tolist() == KINDS.tolist()
    assert [name for part in assigned for name in part.ids.to_pylist()] == [
        f"s-0/{number:04}#0" for number in range(sum(SIZES))
    ]
    similarities = np.concatenate([part.similarities for part in assigned])
    assert result.similarity == pytest.approx(float(similarities.mean()), abs=1e-6)
    again = find_clusters(Vectors(Selection(table), "identity"), 3, seed)
    np.testing.assert_allclose(again.centres, result.centres, atol=1e-6)


def test_every_cluster_has_a_face(tmp_path: Path) -> None:
    """Equal faces leave centres without a face, which then take another face."""
    two = drawn(2)
    table = table_of(tmp_path, [two[0]] * 6 + [two[1]])
    assert find_clusters(Vectors(Selection(table), "identity"), 2).sizes == [6, 1]
    with pytest.raises(RequestError, match="7 faces cannot form 8 clusters"):
        find_clusters(Vectors(Selection(table), "identity"), 8)


def test_a_seed_has_64_bits(table: Table) -> None:
    with pytest.raises(ConfigError, match="the seed must be a number of 64 bits"):
        find_clusters(Vectors(Selection(table), "identity"), 3, seed=1 << 64)


def test_iterations_end_unconverged_clusters(table: Table) -> None:
    result = find_clusters(Vectors(Selection(table), "identity"), 8, most_iterations=1)
    assert (result.iterations, result.converged, sum(result.sizes)) == (1, False, sum(SIZES))
