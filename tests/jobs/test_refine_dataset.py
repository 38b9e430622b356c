"""A second pass over chosen rows of a table, as a user runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import refine_dataset
from jobs.refine_dataset import second_pass
from pipeline.errors import ConfigError
from pipeline.table import Columns, open_for_writing, open_table
from tests.jobs.conftest import WORKERS, Undisturbed
from tests.jobs.running import file_bytes, run_here, run_job
from tests.table.rows import DESCRIPTION, N_STYLES

pytestmark = pytest.mark.timeout(900)
WHERE = "key LIKE 'unusual/%' OR key = 'portraits/0002.jpg'"


def request(where: str) -> tuple[object, ...]:
    """Refine rows of the undisturbed table in a few optimisation steps."""
    flags = ("--steps", 10, "--part-size", 4, *WORKERS)
    return ("--table", "table", "--where", where, "--output", "refined", *flags)


@pytest.fixture(scope="module")
def refined(undisturbed: Undisturbed) -> Path:
    """Return the table of the second pass."""
    run = run_job(undisturbed.folder, *request(WHERE), job="refine_dataset")
    assert run.code == 0, run.err
    assert (run.line["samples"], run.line["faces"], run.line["rejects"]) == (2, 2, 0)
    return undisturbed.folder / "refined"


def test_the_second_pass_holds_the_chosen_faces(refined: Path) -> None:
    table = open_table(str(refined))
    rows = table.sql("SELECT image_id, refined_from, method, generator_passes FROM latents")
    assert set(rows["image_id"]) == {
        "files-00000/portraits/0002.jpg#0",
        "files-00001/unusual/two-faces.jpg#0",
    }
    assert (rows["image_id"] == rows["refined_from"]).all()
    assert set(rows["method"]) == {"hybrid"}
    assert (rows["generator_passes"] >= 10).all()
    counts = table.verify()
    assert (counts["shards"], counts["samples"], counts["faces"]) == (2, 2, 2)


def test_the_second_pass_comes_closer(refined: Path, undisturbed: Undisturbed) -> None:
    after = open_table(str(refined)).sql("SELECT image_id, l2, l2_per_step FROM latents")
    before = open_table(str(undisturbed.table)).sql("SELECT image_id, l2 FROM latents")
    first = dict(zip(before["image_id"], before["l2"], strict=True))
    for row in after.itertuples():
        assert row.l2_per_step[-1] < first[row.image_id]
        assert np.all(np.isfinite(row.l2_per_step))


@pytest.mark.usefixtures("in_its_folder")
def test_the_same_command_again_changes_no_latent(refined: Path) -> None:
    before = file_bytes(refined, "latents", "rejects", "_shards")
    run = run_here(refine_dataset.main, *request(WHERE))
    assert (run.code, run.line["parts"]) == (0, 0)
    assert file_bytes(refined, "latents", "rejects", "_shards") == before


@pytest.mark.usefixtures("in_its_folder")
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("lpipz > 1", "the query failed"),
        ("lpips > (SELECT 1)", "without a SELECT"),
        ("key = 'portraits/0001.jpg'", "where"),
    ],
)
def test_another_condition_is_refused(refined: Path, where: str, said: str) -> None:
    before = file_bytes(refined)
    run = run_here(refine_dataset.main, *request(where))
    assert run.refused
    assert said in run.err
    assert file_bytes(refined) == before


def test_a_missing_table_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_here(refine_dataset.main, "--table", "nowhere", "--output", "out")
    assert run.refused
    assert "'nowhere' is not a table" in run.err or "nowhere" in run.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("chosen", [{}, {"image_field": "png", "image_column": "photo"}])
def test_images_are_chosen_as_in_the_first_pass(tmp_path: Path, chosen: dict[str, str]) -> None:
    config = {"input": "/in", "output": "/out", "target": "/targets", "keep_columns": "label"}
    columns = Columns(N_STYLES, kept=(("label", "int64"),))
    layout = {"input": "/in", "files_per_shard": 9, **chosen}
    table = str(tmp_path / "table")
    open_for_writing(
        table, replace(DESCRIPTION, columns=columns, layout=layout, config=config), part_size=1
    )
    second = second_pass(table, {"output": str(tmp_path / "second")})
    assert second.target == "/targets"
    assert second.image_field == chosen.get("image_field", "all")
    assert second.image_column == chosen.get("image_column")
    assert second.kept_names == ("label",)
    with pytest.raises(ConfigError, match="--steps: input should be less than"):
        second_pass(table, {"output": str(tmp_path / "second"), "iterations": 1_000_000})
