from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.table import means_per_step, open_table
from tests.table.rows import face_row, shard, writer


def row(key: str, *l2: float) -> dict[str, object]:
    lists = {f"{name}_per_step": list(l2) for name in ("l2", "psnr", "lpips", "residual_norm")}
    return face_row(key, steps=len(l2), id_similarity_per_step=[math.nan] * len(l2), **lists)


def test_a_face_that_stopped_early_counts_with_its_last_value(tmp_path: Path) -> None:
    table = writer(tmp_path)
    table.write_part(
        shard(), 0, samples=2, latents=[row("a", 4.0, 2.0, 1.0), row("b", 8.0)], rejects=[]
    )
    means = means_per_step(open_table(str(tmp_path)))
    assert means["step"].tolist() == [1, 2, 3]
    assert means["l2"].tolist() == pytest.approx([6.0, 5.0, 4.5])
    assert means["id_similarity"].isna().all()


def test_a_metric_that_some_faces_lack_is_of_the_others(tmp_path: Path) -> None:
    table = writer(tmp_path)
    faces = [row("a", 4.0, 2.0), face_row("b"), row("c", 1.0)]
    table.write_part(shard(), 0, samples=3, latents=faces, rejects=[])
    means = means_per_step(open_table(str(tmp_path)), ["l2", "id_similarity"])
    assert means.columns.tolist() == ["step", "l2", "id_similarity"]
    assert means["l2"].tolist() == pytest.approx([5.5 / 3, 3.25 / 3, 3.125 / 3])
    assert means["id_similarity"].tolist() == pytest.approx([math.nan, 0.25, 0.5], nan_ok=True)


def test_a_table_without_faces_has_no_means(tmp_path: Path) -> None:
    writer(tmp_path)
    assert len(means_per_step(open_table(str(tmp_path)))) == 0
