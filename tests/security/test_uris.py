"""URIs with credentials are refused by all jobs and functions, and never repeated."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.config_loading import read_config_file
from pipeline.errors import InputError
from pipeline.models import load_model, save_bundle
from pipeline.models.state_files import read_state
from pipeline.table import Columns
from tests.table.rows import N_STYLES, shard, write_shard, writer

SECRET = "SECRETWORD"
URI = f"https://user:{SECRET}@localhost:1/x"
SAMPLES = str(Path(__file__).resolve().parents[2] / "pipeline" / "samples")
HERE = ("--input", SAMPLES, "--output", "out")
CALLS = {
    "invert_dataset": [
        ("--config", URI),
        (*HERE, "--model", URI),
        (*HERE, "--identity", URI),
        ("--input", URI, "--output", "out"),
        ("--input", SAMPLES, "--output", URI),
        (*HERE, "--device", URI),
    ],
    "convert_model": [(URI, "out"), ("demo", URI)],
    "import_latents": [
        ("--from", URI, "--model", "demo", "--output", "out"),
        ("--from", "code.npy", "--model", URI, "--output", "out"),
        ("--from", "code.npy", "--model", "demo", "--output", URI),
    ],
    "edit_latents": [
        ("--table", URI, "--direction", "code.npy", "--output", "out.png"),
        ("--table", "table", "--direction", URI, "--output", "out.png"),
        ("--table", "table", "--direction", f"{URI}/smile.pt", "--output", "out.png"),
        ("--table", "table", "--direction", "code.npy", "--as", "table", "--output", URI),
    ],
    "fit_direction": [
        ("--table", URI, "--column", "yaw", "--output", "out.safetensors"),
        ("--table", "table", "--column", "yaw", "--labels", URI, "--output", "out.safetensors"),
        ("--table", "table", "--column", "yaw", "--output", f"{URI}/out.safetensors"),
    ],
    "export_table": [
        ("--table", URI, "--to", "out.npy"),
        ("--table", "table", "--to", URI, "--as", "codes"),
        ("--table", "table", "--to", "out", "--as", "images", "--model", URI),
    ],
    "render_latents": [
        ("--table", URI, "--output", "out.png"),
        ("--table", "table", "--output", URI),
        ("--table", "table", "--output", "out.png", "--model", URI),
    ],
    "calibrate_stop": [
        ("--calibrate", SAMPLES, "--report", SAMPLES, "--output", "out", "--model", URI),
        ("--calibrate", URI, "--report", SAMPLES, "--output", "out"),
    ],
    "forget": [
        ("--table", URI),
        ("--table", "table", "--like", URI, "--reason", "x"),
        ("--table", "table", "--listed-in", URI),
        ("--table", "table", "--where", "true", "--reason", "x", "--descendants", URI),
    ],
    "report": [("--table", URI, "--output", "out.html")],
    "contact_sheet": [("--table", URI, "--output", "out.png")],
    "evaluate": [("--table", URI, "--output", "out")],
    "find_faces": [
        ("--table", URI, "--clusters", "2"),
        ("--table", "table", "--clusters", "2", "--output", f"{URI}/out.csv"),
        ("--table", "table", "--by", "identity", "--like", URI),
    ],
    "query_latents": [(URI, "SELECT 1")],
    "refine_dataset": [("--table", URI, "--output", "out")],
    "status": [(URI,)],
    "train_restyle": [(*HERE, "--model", URI), ("--config", URI)],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare the working folder of a job: a table and a file of codes."""
    table = writer(tmp_path / "table", columns=Columns(N_STYLES, identity=True))
    write_shard(table, shard(), identity=[0.6, 0.8])
    np.save(tmp_path / "code.npy", np.zeros((10, 512), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("job", "arguments"),
    [(job, arguments) for job, calls in CALLS.items() for arguments in calls],
)
def test_no_job_repeats_the_credentials_of_a_uri(
    folder: Path, capsys: pytest.CaptureFixture[str], job: str, arguments: tuple[str, ...]
) -> None:
    main = importlib.import_module(f"jobs.{job}").main
    try:
        code = main(list(arguments))
    except SystemExit as ended:  # raised by the parser
        code = ended.code
    said = capsys.readouterr()
    assert code == 2, said
    assert SECRET not in said.out + said.err
    assert not (folder / "out").exists()


@pytest.mark.parametrize("load", [load_model, read_config_file, read_state])
def test_loaders_refuse_a_uri_with_credentials(load: object) -> None:
    for uri in (URI, f"s3://key:{SECRET}@bucket/x.pt"):
        with pytest.raises(InputError, match="carries credentials") as error:
            load(uri)  # type: ignore[operator]
        assert SECRET not in str(error.value)


def test_bundles_are_not_written_to_such_uris() -> None:
    with pytest.raises(InputError, match="carries credentials") as error:
        save_bundle(load_model("demo"), URI)
    assert SECRET not in str(error.value)
