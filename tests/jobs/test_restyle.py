"""Promises of the command `restyle`: the jobs by short names, installed from a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pipeline
from jobs import convert_model, query_latents, restyle, status

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.restyle` with `words`."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.restyle", *words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_job_has_a_short_name() -> None:
    files = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    # These make files of this repository; the tour is a notebook.
    others = {"build_demo_model", "build_samples", "tour"}
    assert {module for module, _ in restyle.JOBS.values()} == files - others - {
        "__init__",
        "restyle",
    }


def test_a_subcommand_keeps_flags_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert restyle.main(["status", "/no/such/table"]) == 2
    assert "'/no/such/table' is not a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "images to a table of W+ latents"),
        (["--version"], 0, f"restyle-pipeline {pipeline.__version__}"),
        (["invrt"], 2, "invalid choice: 'invrt'"),
    ],
)
def test_other_words_list_the_jobs(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        restyle.main(words)
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert said in printed.out + printed.err


@pytest.mark.parametrize(
    ("line", "completion"), [("restyle inv", "invert"), ("restyle status --js", "--json")]
)
def test_a_shell_completes_jobs_and_flags(line: str, completion: str, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    run(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        IFS="\013",
    )
    assert answer.read_text().strip() == completion


@pytest.mark.parametrize(
    "words",
    [
        ("TABLE", "--csv", "SELECT 1"),
        ("--table", "TABLE", "SELECT 1"),
        ("SELECT 1", "--table", "TABLE", "--csv"),
    ],
)
def test_a_table_is_given_by_place_or_flag(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(tmp_path / "no-table")
    code = query_latents.main([word.replace("TABLE", table) for word in words])
    assert code == 2
    assert f"'{table}' is not a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "lacking"), [(status.main, "table"), (convert_model.main, "checkpoint, bundle")]
)
def test_a_missing_place_is_named(
    main: object, lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert f"the following arguments are required: {lacking}" in capsys.readouterr().err


def test_a_wheel_holds_the_command_and_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", *build, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    modules = {path.relative_to(ROOT) for path in ROOT.glob("pipeline/**/*.py")}
    data = {Path("pipeline/py.typed"), Path("pipeline/models/bundles/demo/model.safetensors")}
    lacking = [str(path) for path in modules | data if not (installed / path).is_file()]
    assert not lacking, f"not in the wheel: {lacking}"
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "restyle = pipeline.jobs.restyle:main" in entry.read_text()
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pipeline.jobs.restyle import main; main(['query', '--help'])",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.startswith("usage: restyle query")
