"""Calls that must not occur in the code, found in its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])

# Calls that execute data as code, or pass a line to a shell.
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("joblib.load", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"),
    *("tarfile.TarFile.extractall", "shutil.unpack_archive", "tempfile.mktemp"),
}
# Methods of any object.
NEVER_METHODS = {"extractall", "read_pickle", "to_pickle", "unsafe_load"}
ALLOWED = {
    # `zipfile` itself never writes outside the folder; `tarfile` may.
    "jobs/build_samples.py archive.extractall",
    # Messages between the processes of one run, which Ray pickles too; never from storage.
    "pipeline/engine/messages.py pickle.loads",
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield (place, dotted name, call) for every call in the package and the jobs."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name, node


CALLS = list(calls())


def keyword(call: ast.Call, name: str) -> object:
    """Return the constant that a call passes for an argument; None if it passes none."""
    for argument in call.keywords:
        if argument.arg == name:
            return (
                argument.value.value if isinstance(argument.value, ast.Constant) else argument.value
            )
    return None


def test_the_syntax_walk_finds_known_calls() -> None:
    names = {name for _, name, _ in CALLS}
    assert {"torch.load", "yaml.YAMLError", "subprocess.Popen", "json.loads"} <= names


def test_no_data_is_executed_as_code() -> None:
    dangerous = {
        f"{place.rsplit(':', 1)[0]} {name}"
        for place, name, _ in CALLS
        if name in NEVER or ("." in name and name.rsplit(".", 1)[1] in NEVER_METHODS)
    }
    assert dangerous == ALLOWED


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [("torch.load", "weights_only", True)],
)
def test_torch_load_always_sets_weights_only(name: str, argument: str, value: bool) -> None:
    loads = [(place, keyword(call, argument)) for place, called, call in CALLS if called == name]
    assert loads
    assert [place for place, given in loads if given is not value] == []


def test_no_call_uses_a_shell_or_allows_pickles() -> None:
    for argument in ("shell", "allow_pickle"):
        given = [(place, keyword(call, argument)) for place, _, call in CALLS]
        assert [place for place, value in given if value not in (None, False)] == []


def test_no_class_unpickles() -> None:
    bases = [
        ast.unparse(base)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    assert "nn.Module" in bases
    assert not [base for base in bases if "Unpickler" in base]


def test_no_exception_is_silently_ignored() -> None:
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
