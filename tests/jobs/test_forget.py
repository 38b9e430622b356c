"""Erase images from the command line: what is shown, what is refused, which tables are named."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.forget import main
from pipeline.storage import Store
from pipeline.table import Columns, open_table
from tests.table.rows import N_STYLES, commit, face_row, reject_row, shard, writer

PHOTO = b"the bytes of a photo"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a photo, a table, and two tables that were made from it."""
    folder = tmp_path_factory.mktemp("forget")
    (folder / "photo.jpg").write_bytes(PHOTO)
    write_table(folder / "table", {"input": "s3://in"})
    write_table(folder / "refined", {"init": str(folder / "table")})
    write_table(folder / "again", {"refined_from": str(folder / "refined")})
    write_table(folder / "other", {"input": "s3://elsewhere"})
    return folder


def write_table(root: Path, config: dict[str, Any]) -> None:
    table = writer(root, config=config, columns=Columns(N_STYLES, identity=True))
    source = shard("s-0")
    names = {"ann.jpg": [1.0, 0.0], "bob.jpg": [0.0, 1.0], "cid.jpg": [0.28, 0.96]}
    rows = [
        face_row(name, identity=vector)
        | {
            "source_uri": f"{source.source}#{name}",
            "source_sha256": hashlib.sha256(
                PHOTO + name[3:].encode() * (name != "ann.jpg")
            ).hexdigest(),
        }
        for name, vector in names.items()
    ]
    reject = reject_row("dan.jpg") | {"source_uri": f"{source.source}#dan.jpg"}
    table.write_part(source, 0, samples=4, latents=rows, rejects=[reject])
    commit(table, source)


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of `made`, whose tables still name each other."""
    folder = tmp_path / "our tables"
    shutil.copytree(made, folder)
    for name in ("refined", "again"):
        spec = folder / name / "_table.json"
        spec.write_text(spec.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Run the job; return its last line, and what it said to people."""
    code = main(arguments)
    said = capsys.readouterr()
    line: dict[str, Any] = json.loads(said.out.splitlines()[-1])
    assert line["exit_code"] == code
    return line, said.err


BY_NAME = ("--table", "table", "--where", "key = 'ann.jpg'", "--reason", "request 17")


@pytest.mark.usefixtures("folder")
def test_dry_run_shows_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("table")
    before = {name: store.get(name) for name in store.names()}
    line, said = run(capsys, *BY_NAME, "--dry-run")
    assert "face    s-0/ann.jpg#0" in said
    assert "1 image: 1 face and 0 rejects would go, in 1 part of 1 shard" in said
    assert "the images themselves, in 's3://in'" in said
    assert (line["dry_run"], line["faces"], line["exit_code"]) == (True, 1, 0)
    assert {name: store.get(name) for name in store.names()} == before


def test_tables_made_from_it_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, said = run(capsys, *BY_NAME, "--descendants", "other")
    rows = {Path(each["table"]).name: each["rows"] for each in line["descendants"]}
    assert rows == {"refined": 1, "again": 1, "other": 1}
    assert f"'{folder}/again', made from '{folder}/refined' (refined_from), has 1 rows" in said

    command = f"restyle forget --table '{folder}/refined' --listed-in '{folder}/table'"
    assert command in said
    line, said = run(capsys, *shlex.split(command)[2:])
    assert line["faces"] == 1
    rows = {Path(each["table"]).name: each["rows"] for each in line["descendants"]}
    assert rows == {"again": 1}
    assert open_table("refined").verify()["samples"] == 4
    assert open_table("table").verify()["faces"] == 2


def test_photo_finds_its_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, said = run(capsys, "--table", "table", "--like", "photo.jpg", "--reason", "request 17")
    assert "face    s-0/ann.jpg#0" in said
    assert (line["images"], line["faces"]) == (1, 1)
    line, _ = run(capsys, "--table", "table", "--like", "photo.jpg", "--reason", "again")
    assert "no row of the table" in line["errors"][0]
    assert line["exit_code"] == 2
    (folder / "photo.jpg").unlink()
    line, _ = run(capsys, "--table", "table", "--like", "photo.jpg", "--reason", "again")
    assert "no file of this name" in line["errors"][0]


@pytest.mark.usefixtures("folder")
def test_active_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("table")
    ended, killed = "2026-01-01T00:00:00+00:00", "20260102T000000Z-bb"
    store.put(
        "_runs/20260101T000000Z-aa.json", json.dumps({"exit_code": 0, "updated": ended}).encode()
    )
    store.put(f"_runs/{killed}.json", json.dumps({"exit_code": None}).encode())  # parts are new
    line, _ = run(capsys, *BY_NAME)
    assert f"run {killed} seems to write" in line["errors"][0]
    assert store.names("_forgotten/") == []
    assert run(capsys, *BY_NAME, "--ignore-run", killed)[0]["faces"] == 1


@pytest.mark.usefixtures("folder")
def test_second_forget_waits_for_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    lock = {"host": "another", "pid": 1, "id": "x"}
    Store("table").put("_forgotten/lock", json.dumps(lock).encode())
    line, _ = run(capsys, *BY_NAME)
    assert "another forget is running" in line["errors"][0]
