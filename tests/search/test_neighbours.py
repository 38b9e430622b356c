"""Nearest faces are the most similar ones of all faces, by identity and by code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import RequestError
from pipeline.models import load_model
from pipeline.search import vectors as vectors_module
from pipeline.search.clusters import find_clusters
from pipeline.search.neighbours import nearest
from pipeline.search.vectors import Vectors
from pipeline.table import Table
from pipeline.table.reader import UnknownImageError
from pipeline.table.selection import Selection
from tests.search.tables import drawn, table_of, table_of_codes

COUNT, DIMENSIONS = 60, 16
IDENTITIES = drawn(COUNT, DIMENSIONS)
WITHOUT = 7  # the face that has no identity


def name_of(number: int) -> str:
    return f"s-0/{number:04}#0"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Sixty faces, one of which has no identity."""
    rows = [None if number == WITHOUT else row for number, row in enumerate(IDENTITIES)]
    return table_of(tmp_path_factory.mktemp("faces") / "table", rows)


def expected(number: int, k: int) -> list[str]:
    """Return the nearest faces by numpy."""
    cosines = IDENTITIES @ IDENTITIES[number]
    cosines[[number, WITHOUT]] = -2
    return [name_of(place) for place in np.argsort(-cosines)[:k]]


@pytest.mark.parametrize("block", [1 << 22, DIMENSIONS * 8], ids=["one block", "many blocks"])
def test_neighbours_are_those_of_all_pairs(
    table: Table, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_NUMBERS", block)
    monkeypatch.setattr(vectors_module, "_READ_ROWS", 3)
    vectors = Vectors(Selection(table), "identity")
    ids = [name_of(number) for number in (0, 31)]
    for _ in range(2):  # read from the table, then from memory
        result = nearest(vectors, vectors.of_ids(ids), 9, ids)
        assert [[face.image_id for face in row] for row in result] == [
            expected(0, 9),
            expected(31, 9),
        ]
        assert (vectors.faces, vectors.missing) == (COUNT - 1, 1)
    cosine = float(IDENTITIES[0] @ IDENTITIES[int(result[0][0].image_id[4:8])])
    assert result[0][0].similarity == pytest.approx(cosine, abs=1e-6)


def test_faces_without_an_identity_are_never_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_NUMBERS", 2 * DIMENSIONS)
    rows = [*IDENTITIES[:2], None, None, None]  # the last ones after a whole block
    vectors = Vectors(Selection(table_of(tmp_path, rows)), "identity", held_bytes=0)
    (result,) = nearest(vectors, vectors.of_ids([name_of(0)]), 9, [name_of(0)])
    assert [face.image_id for face in result] == [name_of(1)]
    assert (vectors.faces, vectors.missing) == (2, 3)
    assert find_clusters(vectors, 2).sizes == [1, 1]


def test_equal_faces_come_by_id(tmp_path: Path) -> None:
    table = table_of(tmp_path, [IDENTITIES[0]] * 4)
    frame = table.nearest(name_of(2), 5)
    assert frame["image_id"].tolist() == [name_of(0), name_of(1), name_of(3)]
    assert frame["similarity"].tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_frame_has_a_row_per_neighbour(table: Table) -> None:
    frame = table.nearest([name_of(3), name_of(5)], 2)
    assert list(frame) == ["query", "rank", "image_id", "similarity"]
    assert frame["query"].tolist() == [name_of(3)] * 2 + [name_of(5)] * 2
    assert frame["rank"].tolist() == [1, 2, 1, 2]
    assert frame["image_id"].tolist() == expected(3, 2) + expected(5, 2)
    by_vector = table.nearest(IDENTITIES[3], 3)
    assert by_vector["query"].tolist() == [0, 0, 0]
    assert by_vector["image_id"].tolist() == [name_of(3), *expected(3, 2)]


def test_a_condition_limits_the_compared_faces(table: Table) -> None:
    few = table.nearest(name_of(0), 3, where="key < '0005'")
    numbers = sorted((1, 2, 3, 4), key=lambda n: -float(IDENTITIES[0] @ IDENTITIES[n]))
    assert few["image_id"].tolist() == [name_of(number) for number in numbers[:3]]


def test_unusable_queries_are_refused(table: Table, tmp_path: Path, tiny_bundle: str) -> None:
    with pytest.raises(UnknownImageError, match="has no 's-0/none#0'"):
        table.nearest(["s-0/none#0"])
    with pytest.raises(RequestError, match=r"no identity of 's-0/0007#0'.*--by w_plus"):
        table.nearest(name_of(WITHOUT))
    with pytest.raises(
        RequestError, match=r"takes finite numbers \[n, d\], not an array \[1, 2, 3"
    ):
        table.nearest(np.zeros((1, 2, 3)))
    with pytest.raises(RequestError, match="queries have 5 numbers, the table's vectors 16"):
        table.nearest(np.ones((1, 5)))
    with pytest.raises(RequestError, match="k must be at least 1, got 0"):
        table.nearest(name_of(0), 0)
    codes = table_of_codes(tmp_path / "codes", tiny_bundle, np.zeros((1, 10, 512), np.float32))
    with pytest.raises(RequestError, match="has no column identity: search --by w_plus"):
        codes.nearest(name_of(0), by="identity")


def test_codes_are_compared_row_by_row_around_the_average(tmp_path: Path, tiny_bundle: str) -> None:
    average = load_model(tiny_bundle).latent_avg.numpy()
    codes = average + np.random.default_rng(0).standard_normal((5, 10, 512)).astype(np.float32)
    codes[4] = average + 3 * (codes[0] - average)  # farther from the average, in one direction
    frame = table_of_codes(tmp_path, tiny_bundle, codes).nearest(name_of(0), 4)
    assert frame["image_id"].iloc[0] == name_of(4)
    assert frame["similarity"].iloc[0] == pytest.approx(1, abs=1e-5)
    rows = torch.from_numpy(codes - average)
    cosines = torch.nn.functional.cosine_similarity(rows[0], rows[1:4], dim=-1).mean(dim=1)
    assert frame["similarity"].iloc[1] == pytest.approx(float(cosines.max()), abs=1e-5)
