"""`make tour` and its notebook go through a table of the demo model."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

from jobs import restyle
from tests.test_makefile import ROOT, make


def test_tour_runs_as_commands_and_as_notebook(make_table, tmp_path, monkeypatch, capsys):
    table = make_table(model="demo", keep_crops=True)
    (face, _) = table.sql("SELECT image_id FROM latents ORDER BY image_id").image_id
    said = make("-n", "tour", f"DEMO={tmp_path}", f"FACE={face}").replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in said.splitlines() if "/restyle " in line]
    assert [words[0] for words in commands] == ["query", "edit", "find", "report"]
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["restyle"])
        assert restyle.main(words) == 0, capsys.readouterr().err
    opened = said.splitlines()[-1].split()[-2:]
    assert all(Path(path).stat().st_size > 10_000 for path in opened)

    monkeypatch.setattr(sys, "argv", ["tour.py", table.store.root])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "jobs" / "tour.py"))
    opened = capsys.readouterr().out.splitlines()[-2:]
    assert opened == [str(tmp_path / "tour_edits.png"), str(tmp_path / "tour_report.html")]
    assert all(Path(path).stat().st_size > 10_000 for path in opened)
