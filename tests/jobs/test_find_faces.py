"""Check rows, files, the last line and wrong requests of the job that finds alike faces."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import find_faces
from pipeline.storage import Store
from tests.conftest import Bucket
from tests.search.tables import drawn, table_of

ROWS = drawn(12)
ROWS[[3, 8]] = ROWS[5]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Return exit code, JSON line and stderr."""
    try:
        code = find_faces.main([str(word) for word in arguments])
    except SystemExit as ended:  # raised by the parser
        code = int(ended.code or 0)
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    return code, json.loads(line), said.err


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("find") / "table"
    table_of(folder, [*ROWS, None])
    return folder


def test_neighbours_are_listed_and_written(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "neighbours.csv"
    code, line, said = run(
        *(capsys, "--table", table, "--like", "s-0/0005#0", "s-0/0000#0", "-k", 2),
        *("--output", output),
    )
    assert code == 0
    assert (line["by"], line["faces"], line["without_vector"]) == ("identity", 12, 1)
    first, second = line["like"]
    assert [face["image_id"] for face in first["neighbours"]] == ["s-0/0003#0", "s-0/0008#0"]
    assert (first["query"], second["query"]) == ("s-0/0005#0", "s-0/0000#0")
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [(row["query"], row["rank"], row["image_id"]) for row in rows[:2]] == [
        ("s-0/0005#0", "1", "s-0/0003#0"),
        ("s-0/0005#0", "2", "s-0/0008#0"),
    ]
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    assert "like s-0/0005#0\n   1.0000  s-0/0003#0" in said


def test_groups_and_clusters_are_written_in_a_bucket(
    s3: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    table = f"{s3.uri}/table"
    table_of(table, [*ROWS, None])
    code, line, said = run(
        *(capsys, "--table", table, "--duplicates", 0.95, "--order", "key DESC"),
        *("--output", f"{s3.uri}/duplicates.parquet", "--approximate"),
    )
    assert (code, line["groups"], line["faces_in_groups"]) == (0, 1, 3)
    assert line["approximate"]
    assert "3 of 12 faces are in 1 groups of at least 0.95" in said
    with Store(s3.uri).open("duplicates.parquet") as file:
        rows = pq.read_table(file).to_pydict()
    assert rows["group"] == [0, 0, 0]
    assert rows["image_id"] == ["s-0/0008#0", "s-0/0005#0", "s-0/0003#0"]
    code, line, said = run(
        capsys, "--table", table, "--clusters", 2, "--output", f"{s3.uri}/clusters.csv"
    )
    assert (code, sum(line["sizes"]), line["converged"]) == (0, 12, True)
    assert f"cluster 0: {line['sizes'][0]} faces, such as s-0/00" in said
    written = Store(s3.uri).get("clusters.csv").decode().splitlines()
    clusters = [int(row.split(",")[0]) for row in written[1:]]
    assert np.bincount(clusters).tolist() == line["sizes"]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "one of the arguments --like --duplicates --clusters is required"),
        (("--like", "s-0/0000#0", "--clusters", 2), "not allowed with argument --like"),
        (("--duplicates", "much"), "'much' is not a number"),
        (("--duplicates", "1.5"), "above -1 and up to 1, not 1.5"),
        (("--clusters", 2, "--approximate"), "--approximate is for --duplicates"),
        (("--clusters", 0), "not a whole number above 0"),
        (("--clusters", 99), "12 faces cannot form 99 clusters"),
        (("--like", "s-0/none#0"), "'s-0/none#0' is not an image id of the table"),
        (("--like", "s-0/0012#0"), "no identity of 's-0/0012#0'"),
        (("--like", "s-0/0000#0", "--output", "rows.txt"), "name it *.csv"),
        (("--like", "s-0/0000#0", "-k", 1001), "too many to print: name a file"),
        (("--clusters", 2, "--where", "key = 'x'"), "selects no face"),
        (("--clusters", 2, "--by", "colour"), "invalid choice: 'colour'"),
    ],
)
def test_wrong_requests_are_named(
    table: Path, capsys: pytest.CaptureFixture[str], flags: tuple[object, ...], error: str
) -> None:
    code, line, said = run(capsys, "--table", table, *flags)
    assert (code, line["exit_code"]) == (2, 2)
    assert error in line["errors"][0]
    assert error in said
