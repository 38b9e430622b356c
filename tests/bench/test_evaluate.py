"""Check that the evaluation benchmark measures complete tables."""

from __future__ import annotations

from pathlib import Path

from pipeline.reports.faces import read_face_scalars
from pipeline.table import open_table
from tests.bench.evaluate import PART, STEPS, write_table


def test_two_tables_share_faces_but_not_numbers(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_table(tmp_path / name, PART + 1, seed)
    first_table, second_table = (open_table(str(tmp_path / name)) for name in ("one", "two"))
    assert first_table.verify()["faces"] == 2 * PART
    first, second = read_face_scalars(first_table), read_face_scalars(second_table)
    assert first.ids.equals(second.ids)
    assert len(set(first.ids.to_pylist())) == 2 * PART
    assert first.per_step["l2"].shape == (2 * PART, STEPS)
    assert (first.quality["l2"] != second.quality["l2"]).all()
    missed = first_table.sql("SELECT count(*) - count(id_similarity) FROM latents").iloc[0, 0]
    assert 0.05 < missed / (2 * PART) < 0.15
