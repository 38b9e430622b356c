"""Run the query job."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import query_latents
from tests.conftest import Bucket
from tests.jobs.running import Ended, run_here
from tests.table.rows import face_row, reject_row, shard, write_shard, writer

JOB = Path(__file__).resolve().parents[2] / "jobs" / "query_latents.py"


def ask(table: object, *arguments: str) -> Ended:
    return run_here(query_latents.main, table, *arguments)


def ask_as_a_user(table: object, *arguments: str, **env: str) -> Ended:
    command = [sys.executable, str(JOB), str(table), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    return Ended(run.returncode, run.stdout, run.stderr)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("query") / "table"
    write_shard(writer(root), shard())
    return root


def test_a_grid_by_default(table: Path) -> None:
    query = "SELECT image_id, w_plus, l2, id_similarity_per_step FROM latents ORDER BY image_id"
    run = ask_as_a_user(table, query)
    assert (run.code, run.err) == (0, "")
    assert "│ s-0/a#0   │ 6×512 numbers │ 0.125 │ [, 0.25, 0.5]" in run.out


def test_many_columns_print_one_grid_per_row(table: Path) -> None:
    run = ask_as_a_user(table, "SELECT * FROM latents LIMIT 1", COLUMNS="80")
    assert "detector_score" in run.out


def test_json_prints_one_line_per_row(table: Path) -> None:
    query = "SELECT key, id_similarity_per_step AS s, w_plus[1][:2] AS w FROM latents ORDER BY 1"
    run = ask(table, query, "--json")
    rows = [json.loads(line) for line in run.out.splitlines()]
    assert [row["key"] for row in rows] == ["a", "c", "c", "x/b"]
    assert rows[0]["s"] == [None, 0.25, 0.5]
    assert len(rows[0]["w"]) == 2


def test_csv_with_lists_as_json(table: Path) -> None:
    query = "SELECT reason, count(*) AS n, [1, NULL] AS l FROM rejects GROUP BY 1 ORDER BY 1"
    rows = list(csv.DictReader(io.StringIO(ask(table, query, "--csv").out)))
    assert [(row["reason"], row["n"]) for row in rows] == [
        ("crashed", "1"),
        ("face_too_small", "1"),
        ("no_face", "2"),
    ]
    assert json.loads(rows[0]["l"]) == [1, None]


def test_columns_of_one_name_keep_their_own_values(table: Path) -> None:
    """A join of latents with themselves has every column twice."""
    query = (
        "SELECT a.l2, b.l2, a.l2 <> b.l2 AS differ FROM latents a JOIN latents b "
        "ON a.image_id < b.image_id ORDER BY a.image_id, b.image_id LIMIT 1"
    )
    expected = json.loads(ask(table, query, "--json").out)
    assert list(expected) == ["l2", "l2_1", "differ"]
    assert (expected["l2"] != expected["l2_1"]) is expected["differ"]
    lines = ask(table, "SELECT 1 AS a, 2 AS a, 3 AS a_1", "--csv").out.splitlines()
    assert lines == ["a,a_1,a_1_1", "1,2,3"]
    assert "│ 1 │ 2   │ 3     │" in ask(table, "SELECT 1 AS a, 2 AS a, 3 AS a_1").out


def test_json_has_null_for_invalid_numbers(table: Path) -> None:
    query = "SELECT 'nan'::FLOAT AS x, ['inf'::FLOAT, 1] AS y, {'z': '-inf'::DOUBLE} AS s"
    line = ask(table, query, "--json").out
    assert line == '{"x": null, "y": [null, 1.0], "s": {"z": null}}\n'


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_a_map_has_null_for_invalid_numbers(
    table: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT map([1], ['nan'::DOUBLE]) AS x, [map(['a'], [[1.5::DOUBLE]])] AS y"
    assert query_latents.main([str(table), query, form]) == 0
    output = capsys.readouterr().out
    assert (
        output
        == {
            "--json": '{"x": [[1, null]], "y": [[["a", [1.5]]]]}\n',
            "--csv": 'x,y\n"[[1, null]]","[[[""a"", [1.5]]]]"\n',
        }[form]
    )


def test_files_of_labels_are_joined(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text('key,smile\na,1\n"x/b",0\n')
    (tmp_path / "people.jsonl").write_text('{"key": "a", "person": {"name": "Ada"}}\n')
    query = (
        "SELECT key, smile, p.person.name FROM latents JOIN labels USING (key) "
        "LEFT JOIN p USING (key) ORDER BY key"
    )
    files = ["--with", f"labels={tmp_path}/labels.csv", "--with", f"p={tmp_path}/people.jsonl"]
    assert query_latents.main([str(table), *files, query, "--csv"]) == 0
    assert capsys.readouterr().out == "key,smile,name\na,1,Ada\nx/b,0,\n"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("labels", "give a name and a file"),
        ("labels=", "give a name and a file"),
        ("labels={folder}/absent.csv", "is not a file, or does not exist"),
        ("labels={folder}/labels.txt", "name a .csv, .tsv, .jsonl, .ndjson or .parquet file"),
        ("labels={folder}/empty.parquet", "cannot be read"),
        ("latents={folder}/labels.csv", "the name 'latents' of a frame is taken"),
        ("query={folder}/labels.csv", "the name 'query' is taken"),
        ("my-labels={folder}/labels.csv", "cannot be the name of a frame"),
    ],
)
def test_a_wrong_file_of_labels_is_refused_in_one_line(
    table: Path, tmp_path: Path, given: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text("key,smile\na,1\n")
    (tmp_path / "empty.parquet").touch()
    arguments = [str(table), "SELECT 1", "--with", given.format(folder=tmp_path)]
    assert query_latents.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1, 'infinity'::DATE AS odd",
        "SELECT DATE '9999-12-31' + INTERVAL 1000000 DAY AS odd",
        "SELECT {'a': ['-infinity'::DATE]} AS odd",
        "SELECT '0044-01-01 (BC)'::DATE AS odd",
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_date_beyond_python_is_refused(
    table: Path, query: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert query_latents.main([str(table), query, *form]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "column 'odd' has a value that Python cannot represent" in told.err


def test_a_query_that_is_not_utf8_is_refused(table: Path) -> None:
    run = ask(table, os.fsdecode(b"SELECT '\xff'"))
    assert run.code == 2
    assert run.err == "RequestError: the query failed: it is not UTF-8 text\n"


def test_a_table_in_a_bucket_needs_only_environment(s3: Bucket) -> None:
    root = f"{s3.uri}/table"
    write_shard(writer(root), shard())
    run = ask_as_a_user(root, "SELECT count(*) AS n FROM latents", "--json", **s3.env)
    assert (run.code, run.out, run.err) == (0, '{"n": 4}\n', "")


@pytest.mark.parametrize(
    "query",
    [
        "SELEC",
        "SELECT nope FROM latents",
        "COPY latents TO '/tmp/never-written.csv'",
        "SELECT * FROM read_text('/etc/hostname')",
    ],
)
def test_a_wrong_query_is_refused_in_one_line(table: Path, query: str) -> None:
    run = ask(table, query)
    assert (run.code, run.out) == (2, "")
    assert len(run.err.splitlines()) == 1


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    run = ask(tmp_path, "SELECT 1")
    assert run.code == 2
    assert run.err == f"InputError: '{tmp_path}' is not a table: it has no _table.json\n"


HOSTILE = "\x1b]0;owned\x07\x1b[2K=cmd|' /C calc'!A0\u202e[red]\n"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose keys and details do things to a terminal, as names in an archive may."""
    root = tmp_path_factory.mktemp("hostile") / "table"
    table = writer(root)
    reject = {**reject_row(f"r{HOSTILE}"), "detail": HOSTILE}
    part = table.write_part(shard(), 0, samples=2, latents=[face_row(HOSTILE)], rejects=[reject])
    table.commit_shard(shard(), [part])
    return root


@pytest.mark.parametrize(
    "query",
    [
        "SELECT key, [key], {'a': key} FROM latents",
        "SELECT key, detail FROM rejects",
        f'SELECT 1 AS "{HOSTILE}"',
        f'SELECT * EXCLUDE (w_plus), 1 AS "{HOSTILE}" FROM latents',
    ],
)
def test_a_grid_shows_names_and_cells_escaped(
    hostile: Path, query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query_latents.main([str(hostile), query]) == 0
    output = capsys.readouterr().out
    assert r"\x1b[2K=cmd" in output
    assert r"\u202e[red]\n" in output
    assert all(line.isprintable() for line in output.splitlines())


def test_csv_and_json_keep_the_data(hostile: Path) -> None:
    query = f'SELECT key AS "{HOSTILE}", detail FROM rejects'
    lines = ask(hostile, query, "--json").out.splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line) for line in lines] == [{HOSTILE: f"r{HOSTILE}", "detail": HOSTILE}]
    sheet = io.StringIO(ask(hostile, query, "--csv").out)
    assert list(csv.reader(sheet)) == [[HOSTILE, "detail"], [f"r{HOSTILE}", HOSTILE]]


def test_csv_on_a_terminal_is_printable(
    hostile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    query = f'SELECT key AS "{HOSTILE}", detail FROM rejects'
    assert query_latents.main([str(hostile), query, "--csv"]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
