"""Fits as their users run them: the file, its card, and an edit by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs.edit_latents
import jobs.fit_direction
import jobs.import_latents
from pipeline.editing.directions import read_direction
from pipeline.editing.w_space import w_space_of
from pipeline.models import load_model
from tests.conftest import Bucket

DRAWS = np.random.default_rng(0)
TRUE = DRAWS.standard_normal(512) / np.sqrt(512)
ALONG = DRAWS.standard_normal(60) * 3
FACES = len(ALONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: str) -> Path:
    """A folder with a table of codes that lie along `TRUE`, and their positions, `labels.csv`."""
    folder = tmp_path_factory.mktemp("fit")
    codes = 0.1 * DRAWS.standard_normal((FACES, 10, 512)) + ALONG[:, None, None] * TRUE
    np.save(folder / "codes.npy", codes.astype(np.float32))
    lines = [f"{number:06d},{value}" for number, value in enumerate(ALONG)]
    (folder / "labels.csv").write_text("\n".join(["key,smile", *lines]) + "\n")
    arguments = ("--from", "codes.npy", "--model", tiny_bundle, "--output", "table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert jobs.import_latents.main(arguments) == 0
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> Any:
    """Run a job on the table in an empty folder: exit code, last line of stdout."""
    monkeypatch.chdir(tmp_path)

    def call(job: Any, *arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = job.main(["--table", str(folder / "table"), *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_a_fit_leaves_a_direction_and_its_card(run: Any, folder: Path, tiny_bundle: str) -> None:
    code, line = run(
        jobs.fit_direction,
        *("--labels", folder / "labels.csv", "--column", "smile"),
        *("--penalty", "0.1", "--output", "smile.safetensors"),
    )
    assert (code, line["faces"], line["method"]) == (0, FACES, "ridge")
    direction = read_direction("smile.safetensors")
    assert direction.w_space == w_space_of(load_model(tiny_bundle))
    assert float(direction.rows[0] @ TRUE / np.linalg.norm(TRUE)) > 0.9
    assert line["score"]["r2"] > 0.9
    card = json.loads(Path("smile.json").read_text())
    assert card == {"name": "smile", **direction.facts}
    assert {name: line[name] for name in direction.facts} == dict(direction.facts)
    text = Path("smile.md").read_text()
    assert f"R²: {line['score']['r2']:.4f}" in text
    assert "Score on" in text
    assert Path(line["card"]).name == "smile.md"


def test_two_conditions_are_fitted_and_used_in_a_bucket(run: Any, s3: Bucket) -> None:
    median = "(SELECT median(w_avg_distance) FROM latents)"
    code, line = run(
        jobs.fit_direction,
        *("--where", f"w_avg_distance > {median}", "--against", f"w_avg_distance <= {median}"),
        *("--method", "mean", "--output", f"{s3.uri}/far.safetensors"),
    )
    assert (code, set(line["score"])) == (0, {"accuracy", "auc"})
    flags = ("--direction", f"{s3.uri}/far.safetensors", "--strength", "1", "--limit", "2")
    out = ("--as", "table", "--identity", "none", "--output", f"{s3.uri}/edited")
    code, line = run(jobs.edit_latents, *flags, *out)
    assert (code, line["faces"], line["notes"]) == (0, 2, [])
    assert run(jobs.edit_latents, *flags, "--output", f"{s3.uri}/grid.png")[0] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--output", "x.pt", "--column", "yaw"), "name it NAME.safetensors"),
        (("--output", "x.safetensors"), "say what to fit to"),
        (("--output", "x.safetensors", "--column", "yaw"), "0 faces with a label"),
        (("--output", "x.safetensors", "--column", "nope"), "nope"),
        (("--output", "x.safetensors", "--column", "key"), "expected numbers or a condition"),
        (
            ("--output", "x.safetensors", "--column", "a", "--labels", "nope.csv"),
            "there is no file 'nope.csv'",
        ),
        (
            ("--output", "x.safetensors", "--column", "l2", "--orthogonal-to", "nope"),
            "no direction 'nope'",
        ),
    ],
)
def test_a_wrong_request_is_refused(run: Any, flags: tuple[str, ...], said: str) -> None:
    code, line = run(jobs.fit_direction, *flags)
    assert code == 2
    assert said in line["errors"][0]
    assert not list(Path().glob("x*"))
