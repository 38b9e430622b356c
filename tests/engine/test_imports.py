from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).resolve().parents[2]


def imported(code: str, *modules: str) -> list[str]:
    """Return which of `modules` a new process has imported after `code`."""
    code += f"; import sys; print([name for name in {modules} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(ast.literal_eval(run.stdout))


@pytest.mark.parametrize("stage", ["read", "align", "invert", "write"])
def test_a_stage_does_not_import_networks_or_a_web_client(stage: str) -> None:
    """Every reader, aligner and writer is a process that imports its stage."""
    assert imported(f"import pipeline.engine.stages.{stage}", "torch", "aiohttp") == []


def test_a_model_is_loaded_without_a_compiler() -> None:
    code = "from pipeline.models import load_model; load_model('demo')"
    assert imported(code, "torch._dynamo", "sympy") == []


@pytest.mark.parametrize("pattern", [r"ray(\.\w+)*\._\w+", r"_internal\.\w+ import"])
def test_private_ray_imports_are_in_three_modules(pattern: str) -> None:
    package = Path(pipeline.__file__).parent
    allowed = {"ray_autoscaler.py", "ray_callbacks.py", "shard_source.py"}
    imports = re.compile(rf"^\s*(from|import) .*{pattern}", re.MULTILINE)
    result = {path.name for path in package.rglob("*.py") if imports.search(path.read_text())}
    assert result == allowed


def test_the_ledger_does_not_import_ray() -> None:
    assert imported("import pipeline.engine.ledger", "ray") == []


def test_a_ray_outside_the_tested_releases_is_named() -> None:
    from pipeline.engine.ray_callbacks import TESTED_RAY, untested_ray

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [line for line in project["dependencies"] if line.startswith("ray")]
    ((first, last),) = [re.findall(r"2\.\d+", ray)]
    assert first == ".".join(map(str, TESTED_RAY[0]))
    assert last == f"2.{TESTED_RAY[1][1] + 1}"
    assert untested_ray("2.58.1") == ""
    assert untested_ray("2.61.0.dev0") == (
        "Ray 2.61.0.dev0 is not tested with this package, 2.57 to 2.60 are"
    )
