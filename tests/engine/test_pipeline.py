"""The pipeline on a real Ray, with stages that do no work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig
from pipeline.engine.cluster import running_ray
from pipeline.engine.dataset import Pools, Stages, build_dataset, configure_context, summaries
from pipeline.engine.plan import make_plan
from pipeline.engine.rows import Row
from pipeline.engine.simulate import SimulatedAlign, SimulatedInvert
from tests.storage.archives import write_tar

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(900),
    # Ray Data sets its own deprecated settings, and warns itself of it.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    # Ray leaves the log files of its own processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True)
class Executed:
    """What came out of a pipeline, and Ray's own account of it."""

    rows: list[Row]
    stats: str


@contextmanager
def executed(config: JobConfig) -> Iterator[Executed]:
    with running_ray():
        configure_context()
        dataset: Any = build_dataset(
            make_plan(config), Pools(1, 1, on_gpu=False), Stages(SimulatedAlign, SimulatedInvert)
        )
        yield Executed(list(summaries(dataset)), dataset.stats())


def test_a_part_is_one_row_and_no_stage_is_fused_with_another(
    config_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    tars = tmp_path / "tars"
    for name, count in (("a", 5), ("b", 3), ("empty", 0)):
        members = [(f"{number}.jpg", b"image") for number in range(count)]
        write_tar(tars / f"{name}.tar", [*members, ("readme.txt", b"no image")])
    with executed(config_of(input=str(tars))) as run:
        parts = sorted((row["shard_id"], row["part"]) for row in run.rows if row["kind"] == "part")
        ends = {row["shard_id"]: row["samples"] for row in run.rows if row["kind"] == "end"}
    assert parts == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert ends == {"a": 5, "b": 3, "empty": 0}
    assert len(run.rows) == 8
    assert all(row["payload"] == row["rejected"] == b"" for row in run.rows), "only counts return"
    operators = [line for line in run.stats.splitlines() if line.startswith("Operator ")]
    names = [line.split()[2] for line in operators if "Map" in line]
    assert len(names) == 4, run.stats
    assert not [name for name in names if "->" in name], "a fused shard is retried whole"
    assert [
        "FlatMap(" in names[0],
        "SimulatedAlign" in names[1],
        "SimulatedInvert" in names[2],
    ] == [True] * 3
    blocks = [line.split("tasks executed, ")[1].split()[0] for line in operators if "Map" in line]
    assert blocks == ["8"] * 4, "one block a row in every stage"
