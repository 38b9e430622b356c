"""Run the tests on other releases of Ray and Python, each pair in a throw-away environment.

    python -m tests.compat [--ray 2.57.1,2.60.0] [--python 3.11,3.12] [--suites core,engine,job]

Every Ray is paired with every Python. `core` are the tests without Ray, which run once for each
Python; `engine` are those of tests/engine; `job` is one job over the sample images. An environment
has the pinned packages but for Ray, where they have a wheel for its Python. Packages come from the
configured index; uv makes the environments where it is installed, else venv and pip. The table is
the last thing on stdout, a cell of it one of `ok`, `failed` (its output is above, on stderr) and
`absent` (the interpreter or a package is not to be had). Exit code 1 if anything failed or nothing
ran, 0 otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAYS = ("2.57.1", "2.58.1", "2.59.0", "2.60.0")
PYTHONS = ("3.11", "3.12", "3.13")
WITH_RAY = ("engine", "jobs", "faults", "cluster", "security", "bench", "compat")
PYTEST = ["-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-n", "2"]
ENGINE = [*PYTEST, "--dist", "loadfile", "tests/engine"]
CORE = [*PYTEST, "tests", *(f"--ignore=tests/{name}" for name in WITH_RAY)]
JOB = ["jobs/invert_dataset.py", "--input", "pipeline/samples", "--part-size", "8", "--output"]
SUITES = {"core": CORE, "engine": ENGINE, "job": JOB}
OK, FAILED, ABSENT = "ok", "failed", "absent"


class AbsentError(Exception):
    """Interpreter, or package for it, that is not available here."""


@dataclass(frozen=True)
class Environment:
    """An environment of one Python and one Ray."""

    folder: Path

    @property
    def python(self) -> str:
        """Path of its interpreter."""
        return str(self.folder / "bin" / "python")

    @classmethod
    def create(cls, folder: Path, python: str, ray: str) -> Environment:
        """Install the project with this Ray. Raises `AbsentError` where that is not possible."""
        pins = folder.with_suffix(".txt")
        lines = (ROOT / ".constraints.txt").read_text().splitlines()
        pins.write_text("\n".join([*(one for one in lines if not one.startswith("ray==")), ""]))
        made = cls(folder)
        wanted = ["-c", str(pins), f"ray[data,default]=={ray}", "-e", f"{ROOT}[dev]"]
        if uv := shutil.which("uv"):
            _install([uv, "venv", "--quiet", "--python", python, str(folder)])
            _install([uv, "pip", "install", "--quiet", "--python", made.python, *wanted])
        else:
            _install([_interpreter(python), "-m", "venv", str(folder)])
            _install([made.python, "-m", "pip", "install", "--quiet", *wanted])
        return made

    def run(self, suite: str) -> str:
        """Run one suite and say how it ended."""
        output = [str(self.folder / "table")] if suite == "job" else []
        command = [self.python, *SUITES[suite], *output]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        return FAILED if done.returncode else OK


def _interpreter(version: str) -> str:
    """Return a Python of this version on the path. Raises `AbsentError` where none answers."""
    for name in (f"python{version}", sys.executable):
        try:
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            said = subprocess.run([name, "-c", code], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if said.stdout.strip() == version:
            return name
    raise AbsentError(f"no Python {version} on the path")


def _install(command: list[str]) -> None:
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise AbsentError(f"{' '.join(command[:4])} ... ended with {done.returncode}")


def run_pair(python: str, ray: str, suites: list[str]) -> dict[str, str]:
    """Run the suites on one pair; the folder of its environment is removed afterwards."""
    print(f"== Python {python}, Ray {ray}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        try:
            environment = Environment.create(Path(folder, "env"), python, ray)
        except AbsentError as error:
            print(f"absent: {error}", file=sys.stderr)
            return dict.fromkeys(suites, ABSENT)
        return {suite: environment.run(suite) for suite in suites}


def table(cells: dict[tuple[str, str], dict[str, str]], suites: list[str]) -> str:
    """Return the results as a Markdown table, one row per pair."""
    lines = [f"| Python | Ray | {' | '.join(suites)} |", "| --- " * (2 + len(suites)) + "|"]
    for (python, ray), results in cells.items():
        lines.append(f"| {python} | {ray} | {' | '.join(results[suite] for suite in suites)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the matrix, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, values in (("ray", RAYS), ("python", PYTHONS), ("suites", tuple(SUITES))):
        parser.add_argument(f"--{name}", default=",".join(values), help="default %(default)s")
    given = parser.parse_args(argv)
    suites = given.suites.split(",")
    pairs = [(python, ray) for python in given.python.split(",") for ray in given.ray.split(",")]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    core: dict[str, str] = {}
    for python, ray in pairs:
        known = {"core": core[python]} if python in core and "core" in suites else {}
        done = run_pair(python, ray, [suite for suite in suites if suite not in known])
        cells[python, ray] = known | done
        if done.get("core") in (OK, FAILED):
            core[python] = done["core"]
    print(table(cells, suites))
    ended = {end for results in cells.values() for end in results.values()}
    return int(FAILED in ended or OK not in ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
