from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs import status as job
from pipeline.table.forgetting.forgotten import ForgetList
from pipeline.table.runs import put_run
from tests.jobs.ray_head import ROOT
from tests.jobs.running import Ended, run_here
from tests.table.rows import shard, state_of, write_shard, writer

FOUND = {"shards": 1, "bytes": 100, "done_shards": 0, "done_bytes": 0, "complete": True}


def status(*arguments: object) -> Ended:
    return run_here(job.main, *arguments)


def test_status_is_printed_as_lines_and_json(tmp_path: Path) -> None:
    table = writer(tmp_path)
    now = datetime.now(UTC)
    account = {"exit_code": None, "found": FOUND, "samples": 4, "updated": now.isoformat()}
    put_run(table.store, now, "ab12", account)
    write_shard(table, shard(), commit=False)
    unfinished = status(tmp_path)
    assert unfinished.code == 3, unfinished.err
    assert "0 of 1 committed, 0.0 % of the bytes; 1 open" in unfinished.out
    assert "running or crashed" in unfinished.out
    table.commit_shard(shard(), state_of(table, shard()).parts.values())
    command = [sys.executable, str(ROOT / "jobs" / "status.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "left     nothing" in done.stdout
    began = ForgetList.of([], "request 17")
    began.write(table.store)
    command = f"restyle forget --table {tmp_path}"
    assert f"begun {began.started}, not finished: {command}\n" in status(tmp_path).out
    line = json.loads(status(tmp_path, "--json").out)
    assert (line["complete"], line["samples"], line["seconds_left"]) == (True, 6, 0.0)
    assert line["unfinished_forgets"] == [began.started]


def test_a_folder_without_table_is_refused(tmp_path: Path) -> None:
    refused = status(tmp_path)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "is not a table" in refused.err


def test_shards_that_left_the_input_are_counted_apart(tmp_path: Path) -> None:
    """Three are committed, and one of them is not among the three of the input."""
    table = writer(tmp_path)
    for name in ("gone", "b", "c"):
        write_shard(table, shard(name))
    began = datetime.now(UTC) + timedelta(seconds=2)
    backlog = FOUND | {"done_shards": 2, "done_bytes": 200}
    put_run(table.store, began, "ab12", {"exit_code": None, "found": backlog})
    line = status(tmp_path).out.splitlines()[1]
    assert "2 of 3 committed (and 1 that left the input or changed in it), 66.7 %" in line


def test_status_of_a_killed_run_has_no_time(tmp_path: Path) -> None:
    """Nor does it say that it has made no samples where it says nothing of them."""
    table = writer(tmp_path)
    write_shard(table, shard(), commit=False)
    for name in ("s-0-00000", "s-0-00001"):
        os.utime(tmp_path / "latents" / f"{name}.parquet", (0, 1_700_000_000 + int(name[-1])))
    put_run(table.store, datetime.now(UTC) - timedelta(hours=3), "ab12", {"exit_code": None})
    said = status(tmp_path).out
    assert "left     unknown: no run seems to be active" in said
    assert "presumably crashed (no final record), ? samples" in said


def test_names_of_runs_are_shown_escaped(tmp_path: Path) -> None:
    """A file in `_runs/` is called what its writer likes."""
    root = tmp_path / "a\x1b[31mtable"
    table = writer(root)
    table.store.put("_runs/20260101T000000Z-\x1b[2K\u202eab\n.json", b'{"exit_code": 0}')
    output = status(root)
    assert output.code in (0, 3), output.err
    assert r"20260101T000000Z-\x1b[2K\u202eab\n: " in output.out
    assert all(line.isprintable() for line in output.out.splitlines())


def test_a_stopped_run_shows_what_it_wrote(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard(), commit=False)
    counts = {"samples": 6, "faces": 4, "rejects": 4, "parts": 2}
    account = {"exit_code": 1, "found": FOUND, "updated": datetime.now(UTC).isoformat()}
    put_run(table.store, datetime.now(UTC), "ab12", account | counts)
    stopped = status(tmp_path)
    assert stopped.code == 3
    assert "samples  6; faces 4; rejects 4, of which 6, 4 and 4 in open shards" in stopped.out
    assert "left     unknown: no run seems to be active; to continue, run the same" in stopped.out
    assert "stopped before its end, exit code 1, 6 samples, 4 faces, 4 rejects, 2" in stopped.out


def test_status_shows_a_failed_runs_first_error(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard())
    errors = ["cannot read 'a.tar':\naccess denied", "another"]
    put_run(table.store, datetime.now(UTC), "ab12", {"exit_code": 1, "errors": errors})
    said = status(tmp_path).out
    assert "failed, exit code 1, ? samples, ? faces, ? rejects, ? parts, 2 errors" in said
    assert said.splitlines()[-1] == r"error    cannot read 'a.tar':\naccess denied"
