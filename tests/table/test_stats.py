"""Counts and metric sums of parts, shards and tables."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import TableError
from pipeline.metrics.registry import BEST_ALONE, PER_STEP
from pipeline.reports.faces import read_face_scalars
from pipeline.reports.table_numbers import table_numbers
from pipeline.storage import LeftOut
from pipeline.table import Counts, open_table
from pipeline.table.parts import read_metadata
from pipeline.table.schema import latents_table, rejects_table
from pipeline.table.selection import Selection
from pipeline.table.shard_index import table_stats
from pipeline.table.shard_records import read_shard_record
from pipeline.table.stats import MetricSums, Stats
from tests.table.rows import COLUMNS, face_row, reject_row, shard, state_of, write_shard, writer

FINAL = ("l2", "psnr", "lpips", "id_similarity")
OF_STEPS = ("steps", "best_step", *(f"{name}_per_step" for name in PER_STEP))
EVERY = {name: [1] for name in PER_STEP}


def row(key: str, *l2: float) -> dict[str, Any]:
    lists = {f"{name}_per_step": list(l2) for name in ("l2", "psnr", "lpips", "residual_norm")}
    return face_row(
        key,
        steps=len(l2),
        id_similarity=None,
        id_similarity_per_step=[math.nan] * len(l2),
        **lists,
    )


def stats(faces: Sequence[dict[str, Any]], rejects: Sequence[dict[str, Any]] = ()) -> Stats:
    return Stats.of(latents_table(faces, COLUMNS, "s-0"), rejects_table(rejects, "s-0"))


def test_a_face_that_stopped_early_counts_with_its_last_value() -> None:
    means = stats([row("a", 4.0, 2.0, 1.0), row("b", 8.0)]).sums.means()
    assert means["l2"] == [6.0, 5.0, 4.5]
    assert means["id_similarity"] == [None, None, None]


def test_faces_without_a_metric_are_not_in_its_mean() -> None:
    means = stats([row("a", 4.0, 2.0), face_row("b"), row("c", 1.0)]).sums.means()
    assert means["l2"] == pytest.approx([5.5 / 3, 3.25 / 3, 3.125 / 3])
    assert means["id_similarity"] == [None, 0.25, 0.5]


def test_rejects_are_counted_by_reason_and_faces_with_an_identity() -> None:
    rejects = [reject_row("d"), reject_row("e", "crashed"), reject_row("f")]
    total = stats([face_row("a"), row("b", 1.0)], rejects)
    assert (dict(total.counts.reasons), total.sums.identified) == ({"crashed": 1, "no_face": 2}, 1)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_sums_of_parts_equal_sums_of_all_rows(cut: int) -> None:
    faces = [row("a", 4.0, 2.0, 1.0), row("b", 8.0), face_row("c")]
    rejects = [reject_row("d"), reject_row("e", "crashed"), reject_row("f")]
    parts = [stats(faces[:cut], rejects[:cut]), stats(faces[cut:], rejects[cut:])]
    whole = stats(faces, rejects).figures_text()
    assert sum(parts, Stats()).figures_text() == whole
    assert sum(parts[::-1], Stats()).figures_text() == whole


def test_unmeasured_codes_are_in_no_mean() -> None:
    """Codes imported without images have no metrics."""
    unmeasured = face_row("a", **dict.fromkeys((*OF_STEPS, *FINAL)))
    assert stats([unmeasured]).sums.steps == 0
    assert stats([unmeasured, row("b", 4.0, 2.0)]).sums.means()["l2"] == [4.0, 2.0]


def test_a_code_with_unknown_steps_counts_as_one_step() -> None:
    """Codes imported from single files are measured without steps."""
    measured = face_row("a", **dict.fromkeys(OF_STEPS), id_similarity=None)
    means = stats([measured]).sums.means()
    assert (means["l2"], means["psnr"], means["lpips"]) == ([0.125], [18.0], [0.25])
    assert means["id_similarity"] == means["residual_norm"] == [None]
    unmeasured = face_row("b", **dict.fromkeys((*OF_STEPS, *FINAL)))
    together = stats([unmeasured, measured, row("c", 4.0, 2.0)])
    assert together.sums.means()["l2"] == [4.125 / 2, 2.125 / 2]
    assert together.sums.counts["residual_norm"] == [1, 1]


def test_the_infinite_psnr_of_two_equal_images_is_in_no_mean() -> None:
    exact = face_row("a", steps=1, psnr=math.inf, psnr_per_step=[math.inf])
    means = stats([exact, row("b", 30.0, 40.0)]).sums.means()
    assert means["psnr"] == [30.0, 40.0]
    assert means["l2"] == [15.25, 20.25]


def test_empty_sums_have_no_means() -> None:
    assert (MetricSums().steps, MetricSums().means()) == (0, {})
    assert (stats([]).sums.steps, stats([]).sums.means()["l2"]) == (0, [])


def test_table_stats_equal_sql_over_its_rows(tmp_path: Path) -> None:
    table = writer(tmp_path)
    for name in ("s-0", "s-1"):
        write_shard(table, shard(name))
    early = table.write_part(shard("s-2"), 0, samples=1, latents=[row("z", 8.0)], rejects=[])
    table.commit_shard(shard("s-2"), [early])
    total = table_stats(table.store)
    opened = open_table(str(tmp_path))
    for name in PER_STEP:
        expected = opened.sql(
            f"SELECT avg({name}_per_step[least(step, steps)]) AS mean, step FROM latents,"
            " (SELECT unnest(range(1, 4)) AS step) GROUP BY step ORDER BY step"
        )
        means = [math.nan if mean is None else mean for mean in total.sums.means()[name]]
        assert means == pytest.approx(expected["mean"].tolist(), nan_ok=True)
    reasons = opened.sql("SELECT reason, count(*) AS rows FROM rejects GROUP BY reason")
    assert dict(total.counts.reasons) == dict(zip(reasons.reason, reasons.rows, strict=True))
    counts = total.counts
    assert (counts.shards, counts.samples, counts.faces, counts.rejects) == (3, 13, 9, 8)
    assert total.sums.identified == 8


def test_footers_and_manifests_hold_the_figures(root: str) -> None:
    table = writer(root)
    write_shard(table, shard())
    latents = read_metadata(table.store, "latents/s-0-00000.parquet")["figures"]
    assert latents["reasons"] == {"face_too_small": 1, "no_face": 1}
    assert latents["sums"]["l2"] == [2.0, 1.0, 0.5]
    manifest = read_shard_record(table.store, "s-0")
    assert manifest.stats.counts.reasons == {"crashed": 1, "face_too_small": 1, "no_face": 2}
    assert manifest.stats.sums.counts["id_similarity"] == [0, 4, 4]


def test_resumed_parts_have_their_figures(root: str) -> None:
    """The next run reads their footers and commits their shard."""
    table = writer(root)
    write_shard(table, shard(), commit=False)
    manifest = table.commit_shard(shard(), state_of(table, shard()).parts.values())
    assert manifest.stats.counts.reasons == {"crashed": 1, "face_too_small": 1, "no_face": 2}


def test_figures_are_those_of_the_stored_file(root: str) -> None:
    """Another kind of GPU gives other numbers for the same faces; the first ones are kept."""
    table = writer(root)
    table.write_part(shard(), 0, samples=1, latents=[row("a", 4.0)], rejects=[])
    late = table.write_part(shard(), 0, samples=1, latents=[row("a", 4.5)], rejects=[])
    assert late.stats.sums.means()["l2"] == [4.0]


def test_figures_survive_text_and_back() -> None:
    total = stats([row("a", 4.0, 2.0, 1.0), face_row("b")], [reject_row("c")])
    read = Stats.from_text(total.figures_text(), total.counts)
    assert read == total


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {"surprise": 1},
        {"reasons": {"no_face": -1}},
        {"reasons": 3},
        {"identified": True},
        {"identified": 10**30},
        {"sums": EVERY},
        {"sums": {"l2": [1.0]}, "counts": {"l2": [1]}},
        {"sums": EVERY, "counts": {**EVERY, "l2": [1, 2]}},
        {"sums": {**EVERY, "l2": [1, 2]}, "counts": {**EVERY, "l2": [1, 2]}},
        {"sums": {**EVERY, "beauty": [1]}, "counts": {**EVERY, "beauty": [1]}},
        {"sums": {**EVERY, "l2": [math.nan]}, "counts": EVERY},
        {"sums": {**EVERY, "l2": ["1"]}, "counts": EVERY},
        {"sums": {**EVERY, "l2": [10**400]}, "counts": EVERY},
        {"sums": {**EVERY, "l2": 1}, "counts": EVERY},
    ],
)
def test_invalid_figures_are_refused(facts: Any) -> None:
    with pytest.raises(TypeError, match="figures are damaged"):
        Stats.from_figures(facts)
    with pytest.raises(TableError, match="index is damaged"):
        Stats.from_text(json.dumps(facts))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_damaged_figures_text_is_refused(text: str) -> None:
    with pytest.raises(TableError, match="index is damaged"):
        Stats.from_text(text)


def test_counts_add_up() -> None:
    part = Counts(
        parts=1,
        samples=4,
        faces=3,
        rejects=2,
        reasons=Counter(no_face=2),
        bytes=90,
        stage_seconds=Counter(read=0.5, write=1.5),
        inversion_seconds=0.25,
    )
    shard = Counts(shards=1, left_out=LeftOut({".json": 1}))
    total = part + shard + part + shard
    assert (total.shards, total.parts, total.rejects, total.bytes) == (2, 2, 4, 180)
    assert (total.reasons, total.left_out) == ({"no_face": 4}, {".json": 2})
    assert total.stage_seconds == {"read": 1.0, "write": 3.0}
    assert part.reasons == {"no_face": 2}, "the summands stay"


def test_a_metric_of_the_best_step_alone_has_one_mean(tmp_path: Path) -> None:
    """The list has the value at each face's best step, which differs between faces."""
    definitions = {"id_similarity": "a network" + BEST_ALONE}
    rows = []
    for key, best, value in (("a", 1, 0.5), ("b", 2, 1.0)):
        lists = [value if step == best else None for step in (1, 2)]
        rows.append(
            row(key, 4.0, 2.0)
            | {"best_step": best, "id_similarity": value, "id_similarity_per_step": lists}
        )
    table = writer(str(tmp_path), part_size=2, metrics=definitions)
    source = shard()
    table.commit_shard(source, [table.write_part(source, 0, samples=2, latents=rows, rejects=[])])
    stored = open_table(str(tmp_path))
    assert stored.spec.best_alone == ("id_similarity",)
    means = table_stats(stored.store).sums.means(stored.spec.best_alone)
    assert means["id_similarity"] == [None, 0.75]
    assert means["l2"] == [4.0, 2.0]
    assert np.isnan(read_face_scalars(stored).per_step["id_similarity"]).all()
    curves = table_numbers(Selection(stored)).per_step
    assert [curve.name for curve in curves if curve.name == "id_similarity"] == []
    assert "l2" in [curve.name for curve in curves]
