"""Promises of the table that `make compat` prints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.compat import __main__ as compat

PROJECT = tomllib.loads((compat.ROOT / "pyproject.toml").read_text())["project"]


def test_the_matrix_is_what_the_package_allows() -> None:
    (ray,) = [line for line in PROJECT["dependencies"] if line.startswith("ray")]
    first, end = map(int, re.findall(r"2\.(\d+)", ray))
    assert [int(one.split(".")[1]) for one in compat.RAYS] == list(range(first, end))
    first, end = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    assert [int(one.split(".")[1]) for one in compat.PYTHONS] == list(range(first, end))


def test_a_python_that_is_not_there_is_absent_and_nothing_is_ok(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["--python", "3.99", "--ray", "2.60.0", "--suites", "core,job"]
    assert compat.main(given) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "| 3.99 | 2.60.0 | absent | absent |"
