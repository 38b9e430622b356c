"""Run the code of the table's README."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest

import pipeline.table
from pipeline.engine.cluster import RaySession
from pipeline.engine.ray_callbacks import run_settings
from pipeline.table import open_table
from pipeline.table.card import write_card
from tests.table.rows import N_STYLES, code, shard, write_shard, writer

README = Path(pipeline.table.__file__).parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
CODES = np.stack([code("a"), code("x/b"), code("c"), code("c", 1)])

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small table, `table`, and labels of its images."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "labels.csv").write_text("key,smile\na,1\nx/b,1\nc,1\n")
    write_shard(writer(folder / "table"), shard())
    write_card(open_table(str(folder / "table")))
    return folder


@pytest.fixture
def _ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start Ray, without its output, for the block that uses it."""
    if "to_ray" not in request.getfixturevalue("block"):
        yield
        return
    with RaySession(), run_settings():
        yield


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_code_block_reads_the_codes(
    block: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "pyspark" in block and not (find_spec("pyspark") and shutil.which("java")):
        pytest.skip("needs pyspark and Java")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    codes = np.asarray(names["codes"], np.float32)
    assert codes.shape == (4, N_STYLES, 512)
    assert sorted(codes[:, 0, 0]) == sorted(CODES[:, 0, 0])
    assert codes.sum(dtype=np.float64) == pytest.approx(CODES.sum(dtype=np.float64), abs=1e-3)


def test_every_listed_reader_has_a_code_block() -> None:
    text = "".join(BLOCKS)
    for reader in ("pyarrow", "pandas", "polars", "duckdb", "datasets", "to_ray", "pyspark"):
        assert reader in text
