"""Run the pipeline on a real Ray, with simulated stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.config import JobConfig
from pipeline.engine import ledger as ledger_module
from pipeline.engine import ray_callbacks, shard_source
from pipeline.engine.capacity import Pools, reserved_cpus
from pipeline.engine.ledger import Ledger
from pipeline.engine.messages import Failure, Message, PartDone, ShardEnd, to_row
from pipeline.engine.pipeline import build_pipeline, run_pipeline
from pipeline.engine.plan import make_plan
from pipeline.engine.ray_callbacks import StallDetector, run_settings
from pipeline.engine.run import run_job
from pipeline.engine.simulate import SimulatedAlign, SimulatedInvert
from pipeline.engine.stages import Read, Write, build_stages
from pipeline.errors import ClusterError
from pipeline.table import RunRecord
from tests.engine.on_ray import MARKS
from tests.engine.on_ray.stages import LongInvert, SlowInvert
from tests.storage.archives import write_tar

pytestmark = [*MARKS, pytest.mark.usefixtures("joined")]


@dataclass(frozen=True)
class Executed:
    """Output of a pipeline: messages, and blocks by operator.

    `ahead` is the maximum number of the readers' blocks that were not written yet. `sharing` names
    the operators that shared cores and GPUs.
    """

    messages: list[Message]
    blocks: dict[str, int]
    ahead: int
    sharing: set[str]


@contextmanager
def executed(
    config: JobConfig,
    invert: type[SimulatedInvert] = SimulatedInvert,
    on_gpu: bool = False,
) -> Iterator[Executed]:
    """Run the pipeline to its end on the running Ray, with its settings until the block ends."""
    blocks: dict[str, int] = {}
    ahead: list[int] = []
    sharing: set[str] = set()

    class Count(ExecutionCallback):
        def after_execution_succeeds(self, executor: Any) -> None:
            self.on_execution_step(executor)

        def on_execution_step(self, executor: Any) -> None:
            budget = executor._resource_manager.get_budget
            for operator in executor._topology:
                if budget(operator) is not None:
                    sharing.add(operator.name)
                blocks[operator.name] = operator._metrics.num_task_outputs_generated
            _, read, *_, written = blocks.values()
            ahead.append(read - written)

    plan = make_plan(config)
    types = (Read, SimulatedAlign, invert, Write)
    stages = build_stages(types, plan.job, plan.writer, "cpu")
    workers = {"read": 2, "align": 1, "invert": 1, "write": 1}
    pools = Pools(workers, reserved_cpus(on_gpu=on_gpu), on_gpu)
    with run_settings():
        DataContext.get_current().custom_execution_callback_classes.append(Count)
        ledger = Ledger(plan, RunRecord())
        dataset: Any = build_pipeline(shard_source.shard_source(ledger), stages, pools)
        messages = list(run_pipeline(dataset))
        assert not [message for message in messages if isinstance(message, Failure)]
        yield Executed(messages, blocks, max(ahead), sharing)


def test_stages_are_not_fused_and_parts_are_rows(
    config_of: Callable[..., JobConfig], tmp_path: Path
) -> None:
    tars = tmp_path / "tars"
    for name, count in (("a", 5), ("b", 3), ("empty", 0)):
        members = [(f"{number}.jpg", b"image") for number in range(count)]
        write_tar(tars / f"{name}.tar", [*members, ("readme.txt", b"no image")])
    with executed(config_of(input=str(tars))) as run:
        done = [item for item in run.messages if isinstance(item, PartDone)]
        parts = sorted((item.shard_id, item.part) for item in done)
        ends = {item.shard_id: item.samples for item in run.messages if isinstance(item, ShardEnd)}
    assert parts == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert ends == {"a": 5, "b": 3, "empty": 0}
    assert len(run.messages) == 8
    assert all(len(str(to_row(item))) < 4000 for item in run.messages), "only counts return"
    names = [name for name in run.blocks if "Map" in name]
    assert not [name for name in names if "->" in name], "a fused shard is retried whole"
    stages = ("FlatMap(Read)", "Map(SimulatedAlign)", "Map(SimulatedInvert)", "Map(Write)")
    assert names == list(stages)
    assert [run.blocks[name] for name in names] == [8] * 4, "one block a row in every stage"


def test_readers_do_not_run_far_ahead_of_writers(
    config_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {
        "PARTS_AHEAD": 6,
        "PARTS_AHEAD_PER_WORKER": 0,
        "_MIN_OPEN_SHARDS": 2,
        "_MAX_UNREAD_SHARDS": 3,
    }
    for name, bound in bounds.items():
        monkeypatch.setattr(shard_source, name, bound)
    for number in range(60):
        write_tar(tmp_path / "tars" / f"{number:02d}.tar", [("0.jpg", b"image")])
    with executed(config_of(input=str(tmp_path / "tars")), SlowInvert) as run:
        assert len(run.messages) == 120
    # What is set aside for the source, which computes nothing, is a GPU without an inverter.
    assert run.sharing == {name for name in run.blocks if "Map" in name}
    # A shard is a part and an end: what waits for a reader comes on top.
    assert run.ahead <= 6 + 2 * 3 + 2


def test_a_part_may_outlast_ray_datas_timeout(
    config_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = DataContext.get_current()
    # Ray 2.57 has no such timeout.
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 2.0, raising=False)
    write_tar(tmp_path / "tars" / "a.tar", [("0.jpg", b"image")])
    with executed(config_of(input=str(tmp_path / "tars")), LongInvert) as run:
        assert sorted(type(item).__name__ for item in run.messages) == ["PartDone", "ShardEnd"]


def test_a_run_without_write_access_gives_up(
    config_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "GIVE_UP_PARTS", 3)
    monkeypatch.setattr(ledger_module, "GIVE_UP_S", 0.0)
    for number in range(60):
        write_tar(tmp_path / "tars" / f"{number:02d}.tar", [("0.jpg", b"image")])
    config = config_of(input=str(tmp_path / "tars"), align_workers=1, inverters=1)
    make_plan(config)
    Path(config.output, "latents").write_text("in the way of the folder")
    outcome = run_job(config, (Read, SimulatedAlign, SlowInvert, Write))
    assert outcome.exit_code == 1
    assert outcome.errors[0].startswith("given up: 3 parts failed one after another")
    assert len(outcome.errors) == 4, "57 are neither inverted nor listed"


class Hurried(StallDetector):
    """Half an hour passes with each look, once no pool but that of the inverters is without actor.

    How long the others need to start is this machine's business.
    """

    def __init__(self) -> None:
        super().__init__(lambda: self.now)
        self.now = 0.0

    def check(self, executor: Any) -> None:
        waiting_for = [
            operator.name
            for operator in executor._topology
            if operator.get_autoscaling_actor_pools()
            and not operator.has_execution_finished()
            and not operator.get_actor_info().running
        ]
        if len(waiting_for) == 1 and "Invert" in waiting_for[0]:
            self.now += ray_callbacks.NO_ACTOR_S
        super().check(executor)


def test_a_run_for_which_no_node_comes_ends(
    config_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_callbacks, "StallDetector", Hurried)
    write_tar(tmp_path / "tars" / "a.tar", [("0.jpg", b"image")])
    config = config_of(input=str(tmp_path / "tars"))
    with (
        pytest.raises(
            ClusterError, match=r"no node with a GPU .*Invert.* joined within 30 minutes"
        ),
        executed(config, on_gpu=True),
    ):
        pass
