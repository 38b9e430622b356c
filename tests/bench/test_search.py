"""Check that the benchmark of searches finds the duplicates that it plants."""

from __future__ import annotations

from pathlib import Path

from tests.bench.search import PART, search, write_table


def test_planted_copies_are_found_among_strangers(tmp_path: Path) -> None:
    write_table(tmp_path / "table", 3 * PART)
    result = search(str(tmp_path / "table"), 3 * PART)
    assert result["faces"] == result["duplicates_of"] == 3 * PART
    assert result["copies_found"]
    for name in ("duplicates", "approximate"):
        assert [result[f"{name}_{fact}"] for fact in ("planted", "found", "others")] == [2, 2, 0]
