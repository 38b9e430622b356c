"""Numbers of a report equal those that numpy computes from the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.reports.face_sample import code_map, extreme_rows, same_images, sampled_rows
from pipeline.reports.table_numbers import BINS, GROUPS, Numbers, table_numbers
from pipeline.table import open_table
from pipeline.table.selection import Selection
from tests.reports.report_table import faces, write_faces

ROWS = faces(40)
ROWS[3] |= {"psnr": np.inf, "source_sha256": ROWS[2]["source_sha256"]}
ROWS[7] |= {"sharpness": 1e9}


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    root = tmp_path_factory.mktemp("numbers") / "table"
    write_faces(root, ROWS)
    return Selection(open_table(str(root)))


@pytest.fixture(scope="module")
def numbers(selection: Selection) -> Numbers:
    return table_numbers(selection)


def column(name: str) -> np.ndarray:
    return np.array([row[name] for row in ROWS], np.float32).astype(float)


def test_statistics_leave_out_missing_and_infinite_values(numbers: Numbers) -> None:
    assert (numbers.faces, numbers.exact) == (40, True)
    values = {"yaw": abs(column("yaw"))}
    for each in numbers.distributions:
        given = values.get(each.name, column(each.name))
        finite = given[np.isfinite(given)]
        assert (each.faces, each.missing) == (len(finite), 40 - len(finite))
        expected = [finite.mean(), *np.quantile(finite, [0.1, 0.5, 0.9])]
        assert [each.mean, each.low, each.median, each.high] == pytest.approx(expected)
    missing = {each.name: each.missing for each in numbers.distributions if each.missing}
    assert missing == {"psnr": 1, "id_similarity": 1}


def test_histograms_count_each_face_once(numbers: Numbers) -> None:
    for each in numbers.distributions:
        assert len(each.counts) == BINS
        assert each.below + sum(each.counts) + each.above == each.faces
    lpips = numbers.distribution("lpips")
    assert lpips is not None
    expected, _ = np.histogram(column("lpips"), BINS, (lpips.start, lpips.end))
    assert np.abs(np.cumsum(lpips.counts) - np.cumsum(expected)).max() <= 1  # of rounded edges
    sharpness = numbers.distribution("sharpness")
    assert sharpness is not None
    assert sharpness.above == (column("sharpness") > sharpness.end).sum() > 0


def test_curves_keep_the_quality_of_faces_that_stopped(numbers: Numbers) -> None:
    curves = {curve.name: curve.points for curve in numbers.per_step}
    for name, points in curves.items():
        lists = [np.array(row[f"{name}_per_step"], np.float32) for row in ROWS]
        for step, point in enumerate(points):
            if name == "residual_norm":
                values = [each[step] for each in lists if len(each) > step]
            else:
                values = [each[min(step, len(each) - 1)] for each in lists]
            assert point.faces == len(values)
            assert point.mean == pytest.approx(np.mean(values), rel=1e-5)
            assert point.median == pytest.approx(np.median(values), rel=1e-5)
    assert len(curves) == 5
    assert numbers.best_steps == {1: 0, 2: 10, 3: 30}


def test_groups_by_trait_hold_all_faces(numbers: Numbers) -> None:
    assert list(numbers.by_trait) == ["face_px", "yaw", "sharpness"]
    for name, curves in numbers.by_trait.items():
        trait = abs(column(name))
        for curve in curves:
            assert len(curve.points) == GROUPS
            assert sum(point.faces for point in curve.points) in (39, 40)
        (lpips,) = [curve for curve in curves if curve.name == "lpips"]
        largest = trait >= np.quantile(trait, 1 - 1 / GROUPS)
        assert lpips.points[-1].mean == pytest.approx(column("lpips")[largest].mean(), rel=1e-5)


def test_a_condition_limits_all_numbers(selection: Selection) -> None:
    chosen = table_numbers(Selection(selection.table, "lpips < 0.3", "lpips", 10))
    expected = np.sort(column("lpips"))[:10]
    lpips = chosen.distribution("lpips")
    assert lpips is not None
    assert (lpips.faces, lpips.mean) == (10, pytest.approx(expected.mean(), rel=1e-5))
    assert all(point.faces in (9, 10) for point in chosen.per_step[0].points)


def test_samples_are_runs_spread_over_the_table(selection: Selection) -> None:
    def sampled(most: int, **changes: Any) -> list[str]:
        chosen = Selection(selection.table, **changes)
        rows = sampled_rows(chosen, ("image_id", "lpips"), chosen.count(), most)
        return [row["image_id"].split("/")[-1][:3] for row in rows]

    assert sampled(40) == sampled(1000) == [f"{number:03d}" for number in range(40)]
    assert sampled(39) == [f"{number:03d}" for number in [*range(16), *range(20, 36)]]
    assert sampled(3) == ["000", "001", "002"]
    assert sampled(40, order="lpips DESC", limit=2) == [
        f"{number:03d}" for number in np.argsort(-column("lpips"))[:2]
    ]


def test_the_best_and_worst_faces_have_finite_metrics(selection: Selection) -> None:
    highest = extreme_rows(selection, ("image_id", "psnr"), "psnr", 2, highest=True)
    values = np.sort(column("psnr"))
    assert [row["psnr"] for row in highest] == pytest.approx(values[[-2, -3]])
    lowest = extreme_rows(
        selection, ("image_id", "id_similarity"), "id_similarity", 1, highest=False
    )
    assert lowest[0]["id_similarity"] == pytest.approx(np.nanmin(column("id_similarity")))


def test_the_map_holds_the_principal_components() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(20, 6, 512)).astype(np.float32)
    codes[:, 0, 0] += np.linspace(-300, 300, 20)
    plane = code_map(codes)
    assert plane is not None
    flat = codes.reshape(20, -1) - codes.reshape(20, -1).mean(0)
    left, values, _ = np.linalg.svd(flat.astype(float), full_matrices=False)
    expected = left[:, :2] * values[:2]
    assert np.abs(np.corrcoef(plane.points.T, expected.T)[[0, 1], [2, 3]]) == pytest.approx(1)
    assert plane.shares == pytest.approx(values[:2] ** 2 / (values**2).sum())
    assert np.abs(plane.points).max() == pytest.approx(1)
    assert code_map(codes[:2]) is None
    assert code_map(np.zeros((5, 6, 512), np.float32)) is None


def test_images_with_the_same_bytes_are_listed(selection: Selection) -> None:
    assert same_images(selection, 5) == (
        1,
        [
            {
                "copies": 2,
                "first_key": "photos/002.jpg",
                "last_key": "photos/003.jpg",
                "images": 1,
            }
        ],
    )


def test_a_single_face_has_numbers(tmp_path: Path) -> None:
    write_faces(tmp_path / "table", faces(1))
    numbers = table_numbers(Selection(open_table(str(tmp_path / "table"))))
    assert numbers.faces == 1
    assert all(sum(each.counts) == 1 for each in numbers.distributions)
