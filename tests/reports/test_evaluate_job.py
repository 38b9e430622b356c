"""Run the evaluation job."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from jobs import evaluate as job
from tests.conftest import Bucket
from tests.reports.compared import face, write_table


def faces(levels: str, l2: float) -> dict[str, dict[str, object]]:
    return {key: face([2 * l2, l2 + ord(key) / 1000]) for key in levels}


@pytest.fixture
def two_tables(tmp_path: Path) -> list[str]:
    write_table(tmp_path / "one", faces("abcd", 0.1), inversion_seconds=2.0)
    write_table(tmp_path / "two", faces("abcd", 0.2), inversion_seconds=1.0)
    return ["--table", str(tmp_path / "one"), "--table", str(tmp_path / "two")]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_job_writes_a_report_and_prints_a_table(
    two_tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    labels = ["--label", "slow", "--label", "quick"]
    assert job.main([*two_tables, *labels, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert "| slow | 0.8015" in printed.out
    assert printed.err == f"report: {output}/comparison.md\n"
    text = (output / "comparison.md").read_text()
    assert "# Evaluation on 4 faces" in text
    assert "![quality against time](quality_against_time.png)" in text
    assert (output / "quality_against_time.png").read_bytes().startswith(b"\x89PNG")
    compared = rows(output / "comparison.csv")
    assert [row["method"] for row in compared] == ["slow", "quick"]
    assert [float(row["seconds a face"]) for row in compared] == [0.5, 0.25]
    assert float(rows(output / "paired.csv")[0]["L2 difference"]) == pytest.approx(0.1)
    assert len(rows(output / "per_step.csv")) == 4
    assert len(rows(output / "per_bucket.csv")) == 6  # all faces are equal: one bucket per trait


def test_equal_tables_give_equal_files(two_tables: list[str], tmp_path: Path) -> None:
    for name in ("r1", "r2"):
        assert job.main([*two_tables, "--output", str(tmp_path / name)]) == 0
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("r1", "r2")
    )
    assert first == second


def test_tables_of_one_method_get_different_labels(
    two_tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main([*two_tables, "--output", str(tmp_path / "report"), "--no-plots"]) == 0
    out = capsys.readouterr().out
    assert "| restyle N=2 (one, 1) |" in out
    assert "| restyle N=2 (two, 2) |" in out
    assert not (tmp_path / "report" / "quality_against_time.png").exists()


def test_common_compares_only_shared_faces(
    two_tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "three", faces("bcx", 0.3))
    args = [*two_tables, "--table", str(tmp_path / "three"), "--output", str(tmp_path / "report")]
    assert job.main(args) == 2
    refusal = capsys.readouterr().err
    assert "RequestError: the tables do not have the same faces: 5 are not in all" in refusal
    assert len(refusal.splitlines()) == 1
    assert not (tmp_path / "report").exists()
    assert job.main([*args, "--common", "--no-plots"]) == 0
    text = (tmp_path / "report" / "comparison.md").read_text()
    assert "# Evaluation on 2 faces" in text
    assert "2 of its 4 faces, those that all tables have." in text


def test_coarse_to_fine_without_steps_is_refused_early(
    two_tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*two_tables, "--output", str(tmp_path / "report"), "--coarse-to-fine"]
    assert job.main(args) == 2
    assert "make it with --keep-steps" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_wrong_number_of_labels_is_refused(
    two_tables: list[str], labels: list[str], tmp_path: Path
) -> None:
    given = [text for label in labels for text in ("--label", label)]
    assert job.main([*two_tables, *given, "--output", str(tmp_path / "report")]) == 2


def test_missing_table_gives_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, report = str(tmp_path / "table"), str(tmp_path / "report")
    assert job.main(["--table", table, "--output", report]) == 2
    assert capsys.readouterr().err.endswith("is not a table: it has no _table.json\n")


def test_tables_and_report_may_be_in_a_bucket(s3: Bucket, tmp_path: Path) -> None:
    write_table(f"{s3.uri}/one", faces("ab", 0.1))
    assert job.main(["--table", f"{s3.uri}/one", "--output", f"{s3.uri}/report"]) == 0
    write_table(tmp_path / "one", faces("ab", 0.1))
    assert job.main(["--table", str(tmp_path / "one"), "--output", str(tmp_path / "report")]) == 0
    from pipeline.storage import Store

    local = (tmp_path / "report" / "comparison.csv").read_bytes()
    assert Store(f"{s3.uri}/report").get("comparison.csv") == local


def test_coarse_to_fine_of_real_inversions(make_table, tmp_path: Path) -> None:
    table = make_table(keep_steps=True)
    output = tmp_path / "report"
    args = ["--table", table.store.root, "--output", str(output), "--coarse-to-fine"]
    assert job.main([*args, "--images", "1"]) == 0
    assert (output / "coarse_to_fine.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows(output / "coarse_to_fine_layers.csv")) == 2 * 10
    assert len(rows(output / "coarse_to_fine_bands.csv")) == 2 * 5
    assert "## Coarse to fine" in (output / "comparison.md").read_text()
