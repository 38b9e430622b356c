"""Run the job as a user does, undisturbed, and with wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import invert_dataset
from pipeline.table import open_table
from tests.jobs.conftest import NAMES, REASONS, SECRET, SETTINGS, Undisturbed
from tests.jobs.running import Ended, file_bytes, run_here, run_job

pytestmark = pytest.mark.timeout(900)


AGAIN = ("--config", "run.yaml", "--output", "table", "--steps", 5, *SETTINGS)


def here(*arguments: object) -> Ended:
    return run_here(invert_dataset.main, *arguments)


def test_a_run_ends_with_one_json_line(undisturbed: Undisturbed) -> None:
    run = undisturbed.run
    assert run.code == 0, run.err
    assert len(run.out.splitlines()) == 1
    line = run.line
    assert (line["samples"], line["faces"], line["rejects"]) == (12, 7, 5)
    assert line["rejects_by_reason"] == REASONS
    assert (line["parts"], line["skipped_parts"], line["errors"]) == (12, 0, [])
    assert line["identity_missed"] == 0, "no identity is measured"
    assert line["table"] == "table"
    assert "faces model 'tiny' (CompactEncoder): faces aligned as FFHQ's" in run.err
    assert line["seconds"] > line["first_part_seconds"] > 0
    assert line["images_per_second"] > 0


def test_the_table_keeps_its_promises(undisturbed: Undisturbed) -> None:
    counts = open_table(str(undisturbed.table)).verify()
    assert counts["samples"] == len(NAMES) == 12
    assert (counts["shards"], counts["parts"]) == (2, 12)
    assert (counts["samples_with_faces"], counts["samples_rejected"]) == (7, 5)


def test_every_reject_has_its_reason(undisturbed: Undisturbed) -> None:
    result = open_table(str(undisturbed.table)).sql("SELECT key, reason FROM rejects")
    assert dict(zip(result["key"], result["reason"], strict=True)) == {
        "rejects/corrupt.jpg": "undecodable",
        "rejects/cut-short.jpg": "truncated",
        "rejects/landscape.jpg": "no_face",
        "rejects/text.jpg": "unsupported_format",
        "rejects/thumbnail.jpg": "too_small",
    }


def test_codes_have_their_shape_and_measures_their_steps(undisturbed: Undisturbed) -> None:
    table = open_table(str(undisturbed.table))
    assert table.w_plus(["files-00000/portraits/0001.jpg#0"]).shape == (1, 10, 512)
    rows = table.sql("SELECT key, n_faces, steps, lpips, lpips_per_step FROM latents")
    assert set(rows["steps"]) == {5}, "the flag wins over the file"
    assert dict(zip(rows["key"], rows["n_faces"], strict=True))["unusual/two-faces.jpg"] == 2
    for row in rows.itertuples():
        assert len(row.lpips_per_step) == 5
        assert row.lpips == np.min(row.lpips_per_step)


def test_nothing_is_said_but_the_account(undisturbed: Undisturbed) -> None:
    lines = undisturbed.run.err.splitlines()
    # A plain progress line begins with the time that passed.
    spoken = [line for line in lines if not line[:1].isdigit()]
    assert spoken[0].startswith("faces model 'tiny' (CompactEncoder): "), undisturbed.run.err
    assert spoken[1].startswith("this run"), undisturbed.run.err
    assert [word for word in ("raylet", "pid=", "core_worker") if word in undisturbed.run.err] == []
    assert "Warning" not in undisturbed.run.err


def test_nothing_is_left_in_the_users_home(undisturbed: Undisturbed) -> None:
    assert list((undisturbed.folder / "home").iterdir()) == []


def test_the_settings_stand_in_the_table(undisturbed: Undisturbed) -> None:
    config = json.loads((undisturbed.table / "_table.json").read_text())["config"]
    photos = str(undisturbed.folder / "photos")
    assert (config["steps"], config["part_size"], config["input"]) == (5, 1, photos)
    # The first: other tests have run the same command over this table once more.
    run = min((undisturbed.table / "_runs").iterdir())
    facts = json.loads(run.read_text())
    assert (facts["config"]["steps"], facts["exit_code"], facts["samples"]) == (5, 0, 12)
    assert facts["versions"]["ray"]


def test_no_secret_is_written_or_said(undisturbed: Undisturbed) -> None:
    files = file_bytes(undisturbed.table)
    assert {"_table.json", "README.md"} < files.keys()
    said = {"stdout": undisturbed.run.out.encode(), "stderr": undisturbed.run.err.encode()}
    assert [name for name, content in (files | said).items() if SECRET.encode() in content] == []


def test_a_second_run_changes_no_byte(undisturbed: Undisturbed) -> None:
    before = file_bytes(undisturbed.table)
    run = run_job(undisturbed.folder, *AGAIN)
    assert (run.code, run.line["parts"], run.line["skipped_parts"]) == (0, 0, 12)
    after = file_bytes(undisturbed.table)
    assert {name for name in after if name not in before} == {
        name for name in after if name.startswith("_runs/") and name not in before
    }
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("in_its_folder")
def test_a_dry_run_estimates_and_writes_nothing(undisturbed: Undisturbed) -> None:
    before = file_bytes(undisturbed.folder / "table")
    run = here(*AGAIN, "--dry-run")
    assert run.code == 0
    assert (run.line["dry_run"], run.line["skipped_parts"], run.line["parts_to_do"]) == (
        True,
        12,
        0,
    )
    assert (run.line["samples"], run.line["faces"], run.line["images_per_second"]) == (0, 0, 0.0)
    assert file_bytes(undisturbed.folder / "table") == before


@pytest.mark.usefixtures("in_its_folder")
def test_other_settings_are_refused_with_the_difference(
    undisturbed: Undisturbed,
) -> None:
    before = file_bytes(undisturbed.table)
    run = here(*AGAIN, "--faces", "all")
    assert run.refused
    assert '--faces: "largest" in the table, "all" asked for' in run.err
    assert "Traceback" not in run.err
    assert file_bytes(undisturbed.table) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "nowhere"), "InputError: the input '"),
        (("--input", "nowhere", "--steps", "none"), "ConfigError: --steps: "),
        (("--input", "nowhere", "--config", "missing.yaml"), "cannot read the config file"),
        (("--input", "s3://key:secret@bucket/x"), "carries credentials"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: str,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = here("--output", "table", "--model", tiny_bundle, *arguments)
    assert run.refused
    assert said in run.err.splitlines()[-1]
    assert "Traceback" not in run.err
    assert not (tmp_path / "table").exists()


def test_a_damaged_identity_network_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(b"a picture")
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02c\xff\n\n")  # a class whose name is no UTF-8
    paths = ("--input", "in", "--output", "table", "--model", tiny_bundle, "--identity", "bad.pth")
    run = here(*paths, "--dry-run")
    assert run.refused
    assert "identity weights 'bad.pth': damaged, or not a PyTorch checkpoint" in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("mode", [(), ("--dry-run",)])
@pytest.mark.parametrize("output", ["/proc/x", "photo.jpg", "photo.jpg/table"])
def test_an_impossible_output_is_a_wrong_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: str,
    output: str,
    mode: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"a picture")
    where = ("--input", ".", "--output", output, "--model", tiny_bundle)
    run = here(*where, *mode)
    assert run.refused
    assert f"{output}' cannot be" in run.err.splitlines()[-1]
    assert len(run.err.splitlines()) == 1
    assert run.line["table"] == output


def test_an_unknown_flag_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = here("--output", "table", "--input", "in", "--stepz", "3")
    assert run.refused
    message = "unrecognized arguments: --stepz 3; did you mean --steps?"
    assert run.err.splitlines()[-1].endswith(message)
    assert run.line["errors"] == [message]
