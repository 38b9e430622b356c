"""A table as a Ray dataset, on a real Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engine.cluster import Resources
from pipeline.engine.ray_callbacks import run_settings
from pipeline.errors import RequestError
from pipeline.table import Columns, open_table
from tests.engine.on_ray import MARKS
from tests.table.rows import N_STYLES, code, face_row, shard, write_shard, writer

pytestmark = MARKS
IDS = ["s-0/a#0", "s-0/c#0", "s-0/c#1", "s-0/x/b#0"]
CODES = np.stack([code("a"), code("c"), code("c", 1), code("x/b")])


@pytest.fixture
def _ray(one_node: Resources) -> Iterator[None]:
    with run_settings(one_node.folder):
        yield


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table of four faces in one of its two parts, at a path that Ray might take apart."""
    root = str(tmp_path / "it's [a] table" / "run=3")
    write_shard(writer(root), shard())
    return root


@pytest.mark.usefixtures("_ray")
def test_torch_batches_have_the_shape_of_codes(table: str) -> None:
    dataset = open_table(table).to_ray()
    batches = list(dataset.iter_torch_batches(batch_size=3))
    assert [batch["w_plus"].shape for batch in batches] == [(3, N_STYLES, 512), (1, N_STYLES, 512)]
    assert {batch["w_plus"].dtype for batch in batches} == {torch.float16}
    assert batches[0]["landmarks"].shape == (3, 68, 2)
    assert batches[0]["l2"].dtype == torch.float32
    assert not {"image_id", "converged", "l2_per_step"} & batches[0].keys()


@pytest.mark.usefixtures("_ray")
def test_rows_have_ids_beside_their_codes(table: str) -> None:
    dataset = open_table(table).to_ray()
    assert set(dataset.columns()) == set(Columns(N_STYLES).latents_schema().names)
    rows = sorted(dataset.take_all(), key=lambda row: row["image_id"])
    assert [row["image_id"] for row in rows] == IDS
    assert (np.stack([row["w_plus"] for row in rows]) == CODES).all()


@pytest.mark.usefixtures("_ray")
def test_only_the_columns_that_are_named_are_read(table: str) -> None:
    dataset = open_table(table).to_ray(["image_id", "w_plus"])
    (batch,) = dataset.iter_batches(batch_format="numpy")
    assert batch.keys() == {"image_id", "w_plus"}
    assert batch["w_plus"].shape == (4, N_STYLES, 512)
    (numbers,) = dataset.iter_torch_batches()
    assert numbers.keys() == {"w_plus"}
    (selected,) = dataset.select_columns(["w_plus"]).iter_torch_batches()
    assert torch.equal(selected["w_plus"].sum(), numbers["w_plus"].sum())


@pytest.mark.usefixtures("_ray")
def test_optional_columns_and_missing_values_are_read(tmp_path: Path) -> None:
    columns = Columns(N_STYLES, "float32", all_steps=True, aligned_jpeg=True)
    table = writer(tmp_path, columns=columns)
    steps = np.stack([code("a"), code("b")])
    more = {"w_plus_per_step": steps, "aligned_jpeg": b"bytes"}
    bare = {"landmarks": None, "l2": None, "width": None, "converged": None}
    rows = [face_row("a", **more), face_row("b", **more, **bare)]
    part = table.write_part(shard(), 0, samples=2, latents=rows, rejects=[])
    table.commit_shard(shard(), [part])
    dataset = open_table(str(tmp_path)).to_ray()
    (batch,) = dataset.iter_torch_batches()
    assert (batch["w_plus"].dtype, batch["w_plus"].shape) == (torch.float32, (2, N_STYLES, 512))
    assert batch["landmarks"].isnan().all(dim=(1, 2)).sum() == 1
    assert batch["l2"].isnan().sum() == batch["width"].isnan().sum() == 1
    result = dataset.take(1)[0]
    assert result["aligned_jpeg"] == b"bytes"
    assert np.array_equal(np.stack([np.stack(s) for s in result["w_plus_per_step"]]), steps)


@pytest.mark.usefixtures("_ray")
def test_a_table_is_readable_during_a_run(table: str) -> None:
    """A run follows the stages of Ray Data; this data set has others."""
    polls: list[object] = []
    with run_settings(steps=[polls.append]):
        assert len(open_table(table).to_ray(["image_id"]).take_all()) == 4
    assert polls


@pytest.mark.usefixtures("_ray")
def test_an_execution_ends_with_its_settings(table: str) -> None:
    """An error's traceback may hold its iterator, which would end it when Ray has stopped."""
    executors: list[Any] = []
    with run_settings(steps=[executors.append]):
        rows = open_table(table).to_ray(["image_id"]).iter_internal_ref_bundles()
        next(rows)
    assert executors
    assert all(executor._shutdown for executor in executors)


@pytest.mark.usefixtures("_ray")
def test_a_table_without_parts_is_an_empty_dataset(tmp_path: Path) -> None:
    writer(tmp_path)
    assert open_table(str(tmp_path)).to_ray().count() == 0


def test_an_unknown_column_is_refused_with_the_list(tmp_path: Path) -> None:
    writer(tmp_path)
    with pytest.raises(RequestError, match="no column 'w'; it has image_id, shard, key"):
        open_table(str(tmp_path)).to_ray(["w"])


def test_a_table_is_opened_without_ray() -> None:
    code = "import sys, pipeline.table; print({'ray', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
