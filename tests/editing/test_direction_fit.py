"""A fit finds the direction that labels follow, and its score is that of faces held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.editing.direction_fit import (
    Fit,
    FitSettings,
    Moments,
    auc,
    fit_direction,
    project,
)
from pipeline.editing.directions import Direction
from pipeline.editing.labels import FOLDS, Labels, fold_of, read_labels
from pipeline.errors import ConfigError, InputError, RequestError
from pipeline.table import open_table
from pipeline.table.selection import Selection
from tests.table.rows import N_STYLES, face_row, shard, state_of, writer

FACES = 400
DRAWS = np.random.default_rng(0)
TRUE = DRAWS.standard_normal(512) / np.sqrt(512)  # of length 1
OTHER = DRAWS.standard_normal(512) / np.sqrt(512)
REFERENCE = DRAWS.standard_normal((N_STYLES, 512))
Make = Callable[..., Labels]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table whose `yaw` is the position of a code along `TRUE`, with a little noise.

    A person, the first part of a key, has two faces.
    """
    root = str(tmp_path_factory.mktemp("fit") / "table")
    along = DRAWS.standard_normal(FACES) * 3
    codes = REFERENCE + 0.3 * DRAWS.standard_normal((FACES, N_STYLES, 512))
    codes += along[:, None, None] * TRUE
    rows = [
        face_row(
            f"{number // 2:03d}/{number % 2}",
            w_plus=codes[number],
            yaw=float(along[number] + 0.1 * DRAWS.standard_normal()),
            source_sha256=f"{number:064x}",
            roll_deg=float(number % 2),
        )
        for number in range(FACES)
    ]
    table, source = writer(root, part_size=FACES), shard()
    table.write_part(source, 0, samples=FACES, latents=rows, rejects=[])
    table.commit_shard(source, state_of(table, source).parts.values())
    return root


@pytest.fixture
def labels(table: str) -> Make:
    """Return labels of the table, with `where` and the fields of `Labels`."""

    def make(where: str = "", **fields: Any) -> Labels:
        return Labels(Selection(open_table(table), where), **fields)

    return make


def fitted(labels: Labels, **settings: Any) -> Fit:
    return fit_direction(labels, FitSettings(**settings), REFERENCE)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_numbers_give_their_direction(labels: Make, method: str) -> None:
    fit = fitted(labels(column="yaw"), method=method)
    assert fit.rows.shape == (1, 512)
    assert np.linalg.norm(fit.rows) == pytest.approx(1)
    assert cosine(fit.rows, TRUE) > 0.9
    assert fit.facts["score"]["r2"] > 0.95
    assert fit.facts["label_per_strength"] == pytest.approx(1, abs=0.15)
    assert fit.facts["strength_of_one_deviation"] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("method", ["logistic", "ridge", "mean"])
def test_two_classes_give_their_direction(labels: Make, method: str) -> None:
    fit = fitted(labels("yaw > 0", against="yaw <= 0"), method=method)
    assert cosine(fit.rows, TRUE) > 0.7
    assert fit.facts["score"]["accuracy"] > 0.9
    assert fit.facts["score"]["auc"] > 0.98


def test_every_row_of_w_plus_is_fitted(labels: Make) -> None:
    fit = fitted(labels(column="yaw"), space="w+", penalty=1.0)
    assert fit.rows.shape == (N_STYLES, 512)
    assert (fit.rows**2).sum(axis=1).mean() == pytest.approx(1)
    assert all(cosine(row, TRUE) > 0.7 for row in fit.rows)
    assert fit.facts["score"]["r2"] > 0.95


def test_a_ridge_fit_is_the_closed_form(labels: Make) -> None:
    source = labels(column="yaw")
    batches = list(source.batches())
    x = np.concatenate([batch.codes.mean(axis=1, dtype=float) for batch in batches])
    y = np.concatenate([batch.labels for batch in batches])
    x, y = x - x.mean(axis=0), y - y.mean()
    size = 0.5 * np.trace(x.T @ x) / 512
    expected = np.linalg.solve(x.T @ x + size * np.eye(512), x.T @ y)
    fit = fitted(source, method="ridge", penalty=0.5)
    assert cosine(fit.rows, expected) == pytest.approx(1, abs=1e-6)


def test_the_score_is_of_a_fit_without_the_faces_held_out(labels: Make) -> None:
    source = labels(column="yaw")
    batches = list(source.batches())
    x = np.concatenate([batch.codes.mean(axis=1, dtype=float) for batch in batches])
    y = np.concatenate([batch.labels for batch in batches])
    out = np.concatenate([batch.folds for batch in batches]) == 0
    weights = (x[~out] - x[~out].mean(axis=0)).T @ (y[~out] - y[~out].mean())
    expected = np.corrcoef(x[out] @ weights, y[out])[0, 1]
    facts = fitted(source, method="mean").facts
    assert facts["score"]["correlation"] == pytest.approx(expected, abs=1e-6)
    assert (facts["faces"], facts["held_out"]) == (FACES, int(out.sum()))


@pytest.mark.parametrize("method", ["mean", "ridge", "logistic"])
def test_equal_codes_are_refused(tmp_path: Path, method: str) -> None:
    code = np.ones((N_STYLES, 512), np.float32)
    rows = [
        face_row(f"{number:02d}", w_plus=code, yaw=float(number), source_sha256=f"{number:064x}")
        for number in range(30)
    ]
    table, source = writer(tmp_path / "table", part_size=30), shard()
    table.write_part(source, 0, samples=30, latents=rows, rejects=[])
    table.commit_shard(source, state_of(table, source).parts.values())
    selection = Selection(open_table(str(tmp_path / "table")))
    with pytest.raises(RequestError, match="the codes of the 30 faces are equal"):
        fitted(Labels(selection, column="yaw > 14"), method=method)


def test_labels_of_chance_have_no_score(labels: Make) -> None:
    fit = fitted(labels(column="hash(image_id) % 1000"), method="ridge")
    assert fit.facts["score"]["r2"] < 0.1
    assert abs(fit.facts["score"]["correlation"]) < 0.4


def test_a_fit_can_be_orthogonal_to_others(labels: Make) -> None:
    mixed = Direction("mixed", (TRUE + OTHER)[None].astype(np.float32))
    fit = fitted(labels(column="yaw"), penalty=1.0, orthogonal_to=(mixed,))
    assert abs(cosine(fit.rows, mixed.rows)) < 1e-6
    assert cosine(fit.rows, TRUE) > 0.5
    own = Direction("own", fitted(labels(column="yaw"), penalty=1.0).rows.astype(np.float32))
    with pytest.raises(RequestError, match="nothing of the direction is left"):
        fitted(labels(column="yaw"), penalty=1.0, orthogonal_to=(own,))
    rows = Direction("rows", DRAWS.standard_normal((N_STYLES, 512)).astype(np.float32))
    with pytest.raises(ConfigError, match=r"fit with --space w\+"):
        fitted(labels(column="yaw"), penalty=1.0, orthogonal_to=(rows,))


def test_faces_of_one_person_stay_together(labels: Make) -> None:
    source = labels(column="yaw", split_by="split_part(key, '/', 1)")
    folds = np.concatenate([batch.folds for batch in source.batches()])
    assert (folds[::2] == folds[1::2]).all()
    assert set(folds) == set(range(FOLDS))
    other = labels(column="yaw", split_by="split_part(key, '/', 1)", seed=1)
    assert (np.concatenate([batch.folds for batch in other.batches()]) != folds).any()
    assert fold_of("007", 0) == fold_of("007", 0)


def test_a_file_of_labels_is_matched_by_key(labels: Make, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lines = [f"{number:03d}/0,{'happy' if number < 90 else 'sad'}" for number in range(120)]
    path.write_text("\n".join(["key,mood", *lines, "absent,happy", "119/1,"]) + "\n")
    source = labels(column="mood", file=str(path), positive="happy")
    values = np.concatenate([batch.labels for batch in source.batches()])
    assert (len(values), values.sum()) == (120, 90)
    with pytest.raises(InputError, match="name the one that counts as 1 with --positive"):
        read_labels(str(path), "mood")
    with pytest.raises(InputError, match="has no column 'smile'"):
        read_labels(str(path), "smile")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,smile\na,1\n", "has no column 'image_id'"),
        ("key,smile\na,1\na,2\n", "'a' has two labels"),
        ("key,smile\na,\n", "has no labels"),
        ("key,smile,smile\na,1,2\n", "has two columns 'smile'"),
        ("key,smile\na,1,2\n", "not a CSV or .parquet file, or damaged"),
    ],
)
def test_a_wrong_file_of_labels_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_labels(str(path), "smile")


@pytest.mark.parametrize("keys", [[[1], [2]], [b"\xff", b"b"]])
def test_keys_that_are_no_texts_are_refused(tmp_path: Path, keys: list[Any]) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"key": keys, "smile": [1.0, 2.0]}), path)
    with pytest.raises(InputError, match=r"not a CSV .* or damaged \((Unsupp|Invalid)"):
        read_labels(str(path), "smile")


@pytest.mark.parametrize(
    ("where", "fields", "said"),
    [
        ("", {}, "say what to fit to"),
        ("", {"against": "yaw < 0"}, "--against needs --where"),
        ("yaw > 0", {"column": "yaw", "against": "yaw < 0"}, "say what to fit to"),
        ("yaw > 0", {"against": "yaw > 1"}, "fulfils both --where and --against"),
        ("", {"column": "key"}, "has the type string"),
        ("", {"column": "1"}, "are all of one class"),
        ("key < '002'", {"column": "yaw"}, "4 faces with a label, at least 10"),
        ("", {"column": "no_such"}, "no_such"),
        ("", {"column": "yaw", "split_by": "1"}, "too few values .* give another"),
    ],
)
def test_a_wrong_request_is_refused(
    labels: Make, where: str, fields: dict[str, str], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        fitted(labels(where, **fields))


def test_logistic_needs_two_classes_in_w(labels: Make) -> None:
    with pytest.raises(ConfigError, match="needs labels of two classes"):
        fitted(labels(column="yaw"), method="logistic")
    with pytest.raises(ConfigError, match="fits in W"):
        fitted(labels(column="yaw > 0"), method="logistic", space="w+")


def test_moments_of_parts_add_up() -> None:
    codes, y = DRAWS.standard_normal((20, 2, 512)), DRAWS.standard_normal(20)
    whole, first, second = (Moments.zero(2, with_products=True) for _ in range(3))
    whole.add(codes, y)
    first.add(codes[:7], y[:7])
    second.add(codes[7:], y[7:])
    total = first + second
    np.testing.assert_allclose(total.scatter(1), whole.scatter(1), atol=1e-9)
    centred = codes - codes.mean(axis=0)
    np.testing.assert_allclose(total.scatter(0), centred[:, 0].T @ centred[:, 0], atol=1e-9)
    expected = np.einsum("n,nrd->rd", y - y.mean(), centred)
    np.testing.assert_allclose(total.covariance_with_label, expected, atol=1e-9)
    assert total.label_variance == pytest.approx(((y - y.mean()) ** 2).sum())


def test_auc_counts_ties_one_half() -> None:
    values, positive = np.array([1.0, 2, 2, 3]), np.array([False, False, True, True])
    assert auc(values, positive) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert auc(-values, positive) == pytest.approx(1 - 3.5 / 4)


def test_a_projection_counts_strengths() -> None:
    rows = DRAWS.standard_normal((N_STYLES, 512))
    codes = DRAWS.standard_normal((3, N_STYLES, 512))
    moved = project(codes + 2.5 * rows, rows) - project(codes, rows)
    np.testing.assert_allclose(moved, 2.5)
