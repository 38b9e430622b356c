"""What the code never does with bytes from outside: read in its syntax trees, not in its words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])

# Calls that run code out of data, or hand a line to a shell.
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("joblib.load", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"),
    *("tarfile.TarFile.extractall", "shutil.unpack_archive", "tempfile.mktemp"),
}
# Methods by whatever object they are called on.
NEVER_METHODS = {"extractall", "read_pickle", "to_pickle", "unsafe_load"}
# `zipfile` itself keeps what it unpacks inside the folder; `tarfile` does not.
ALLOWED = {"jobs/build_samples.py archive.extractall"}
# The reader of published LPIPS weights: a subclass whose `find_class` knows a few inert names.
INERT_UNPICKLERS = {"_ArrayReader"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, dotted name, call) of every call in the package and the jobs."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name, node


CALLS = list(calls())


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call gives for an argument; None if it gives none."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


def test_the_walk_sees_the_code() -> None:
    names = {name for _, name, _ in CALLS}
    assert {"torch.load", "yaml.YAMLError", "subprocess.Popen", "json.loads"} <= names


def test_no_data_is_run_as_code() -> None:
    found = {
        f"{place.rsplit(':', 1)[0]} {name}"
        for place, name, _ in CALLS
        if name in NEVER or ("." in name and name.rsplit(".", 1)[1] in NEVER_METHODS)
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [("torch.load", "weights_only", True)],
)
def test_every_load_says_that_it_runs_nothing(name: str, argument: str, value: bool) -> None:
    found = [(place, keyword(call, argument)) for place, called, call in CALLS if called == name]
    assert found
    assert [place for place, given in found if given is not value] == []


def test_no_call_goes_through_a_shell_or_allows_pickles() -> None:
    for argument in ("shell", "allow_pickle"):
        given = [(place, keyword(call, argument)) for place, _, call in CALLS]
        assert [place for place, value in given if value not in (None, False)] == []


def test_unpicklers_know_a_few_names_and_nothing_else() -> None:
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(
                ast.unparse, node.bases
            ):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                found[node.name] = methods
    assert found.keys() == INERT_UNPICKLERS
    assert all("find_class" in methods for methods in found.values())


def test_an_error_never_passes_in_silence() -> None:
    silent = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (
                    ast.unparse(node.type) in {"Exception", "BaseException"}
                    and all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
                )
            ):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []
