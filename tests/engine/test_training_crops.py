"""Cut crops stage by stage, without Ray; tests/jobs runs the whole job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
import torch
from PIL import Image

from pipeline.choices import EARLIER_ALIGNMENT, EARLIER_SEARCH
from pipeline.engine import capacity, pipeline
from pipeline.engine.capacity import CLUSTER_READERS, READERS, UNBOUNDED
from pipeline.engine.cluster import Resources
from pipeline.engine.messages import (
    Failure,
    Message,
    PartDone,
    ShardEnd,
    ShardTask,
    from_row,
    to_row,
)
from pipeline.engine.stages import Align, Read
from pipeline.engine.stages.base import Worker, results
from pipeline.engine.training import crops
from pipeline.engine.training.crops import (
    CropPlan,
    WriteCrops,
    cut_crops,
    cut_pairs,
    plan_crops,
    run_stages,
)
from pipeline.engine.training.run import begin_event
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.training.config import TrainConfig
from pipeline.training.data import CropFile, Crops, put_index, read_index, read_pairs


@contextmanager
def cutting(plan: CropPlan) -> Iterator[Callable[[Message], Message]]:
    """Aligns and cuts a part, in this process."""
    align = Align(plan.alignment)
    root, size = plan.store.root, plan.alignment.output_size
    write = WriteCrops(root, size, keeps_keys=True)
    workers = [Worker(align), Worker(write)]

    def cut(message: Message) -> Message:
        row = to_row(message)
        for worker in workers:
            row = worker(row)
        return from_row(row)

    assert align.aligner
    with align.aligner:
        yield cut


def read(tasks: Sequence[ShardTask]) -> Iterator[Message]:
    return (message for task in tasks for message in results(Read(), task))


def test_crops_keep_the_order_of_the_input(five_images: TrainConfig) -> None:
    plan = plan_crops(five_images)
    with cutting(plan) as cut:
        done = [cut(message) for message in read(plan.tasks)]
    parts = [item.counts for item in done if isinstance(item, PartDone)]
    assert [(counts.samples, counts.faces) for counts in parts] == [(3, 3), (3, 2)]
    assert parts[1].reasons == {"unsupported_format": 1}
    names = plan.store.names()
    assert names == ["files-00000-00000.safetensors", "files-00000-00001.safetensors"]
    put_index(plan.store, [CropFile(names[0], 3), CropFile(names[1], 2)], {})
    images = Crops(plan.store).images(torch.arange(5))
    assert images.shape == (5, 3, 64, 64)
    assert np.array_equal(images[:, 0, 0, 0].numpy(), [0, 40, 80, 120, 160])


def test_rectangular_crops_keep_height_and_width(five_images: TrainConfig) -> None:
    plan = plan_crops(five_images)
    plan = replace(plan, alignment=replace(plan.alignment, output_size=(32, 48)))
    with cutting(plan) as cut:
        assert isinstance(cut(next(read(plan.tasks))), PartDone)
    put_index(plan.store, [CropFile(plan.store.names()[0], 3)], {})
    assert Crops(plan.store).images(torch.arange(3)).shape == (3, 3, 32, 48)


def test_crops_cut_by_earlier_versions_are_found_again(five_images: TrainConfig) -> None:
    """Check the digest of the settings, which is the name of the folder."""

    def folder(**changes: Any) -> str:
        return plan_crops(five_images.model_copy(update=changes)).origin.crops

    assert folder(prealigned=False) != folder(prealigned=False, **EARLIER_SEARCH)
    assert folder(prealigned=True) == folder(prealigned=True, **EARLIER_SEARCH)


class Stages:
    """Stands for a Ray dataset, and keeps what its stages are to run on."""

    def __init__(self) -> None:
        self.pools: list[Any] = []

    def flat_map(self, _stage: object, *, compute: object = None, **_needs: object) -> Stages:
        self.pools.append(compute)
        return self

    map = flat_map


# Ray Data sets its own deprecated settings, and warns itself of it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize(
    ("address", "args", "cpus", "readers", "aligners"),
    [
        (None, None, 17, READERS, 8),
        (None, 3, 17, READERS, 3),
        ("head:6379", None, 17, CLUSTER_READERS, UNBOUNDED),
        ("head:6379", None, 0, CLUSTER_READERS, UNBOUNDED),  # its workers come later
        ("head:6379", 3, 17, CLUSTER_READERS, 3),
    ],
)
def test_crops_are_cut_by_all_cores(
    five_images: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    args: int | None,
    cpus: float,
    readers: int,
    aligners: int,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(capacity, "memory_limit", lambda: 10**12)
    stages = Stages()
    monkeypatch.setattr(ray.data, "from_items", lambda *_, **_options: stages)
    monkeypatch.setattr(pipeline, "run_pipeline", lambda _: iter(()))
    config = five_images.model_copy(update={"align_workers": args})
    plan = plan_crops(config)
    assert not list(run_stages(config, plan, plan.tasks, Resources(cpus, gpus=0, grows=True)))
    assert (stages.pools[0].size, stages.pools[1].max_size) == (readers, aligners)


def crops_in_place(
    aligned: list[int], fails_at: int | None = None
) -> Callable[..., Iterator[Message]]:
    """Return the stages without Ray; they append parts to `aligned`, and one may fail."""

    def messages(
        config: TrainConfig,  # noqa: ARG001
        plan: CropPlan,
        tasks: Sequence[ShardTask],
        resources: Resources,  # noqa: ARG001
    ) -> Iterator[Message]:
        with cutting(plan) as cut:
            for message in read(tasks):
                if isinstance(message, ShardEnd):
                    continue
                aligned.append(message.part)
                error = OSError("the disk is full")
                failed = message.part == fails_at
                yield Failure.of(message, "write", error) if failed else cut(message)

    return messages


def test_cutting_resumes_after_a_failed_part(
    five_images: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3, 6):  # a part without a face
        Path(five_images.input, f"2{number}.png").write_bytes(b"no image")
    plan, resources = plan_crops(five_images), Resources(cpus=2, gpus=0)
    monkeypatch.setattr(crops, "run_stages", crops_in_place([], fails_at=0))
    with pytest.raises(StorageError, match=r"failed: 1, .* part 0: .* the disk is full"):
        cut_crops(five_images, plan, resources)
    assert read_index(plan.store) is None
    aligned: list[int] = []
    monkeypatch.setattr(crops, "run_stages", crops_in_place(aligned))
    cut_crops(five_images, plan, resources)
    assert aligned == [0]
    resumed = read_index(plan.store)
    whole = plan_crops(five_images.model_copy(update={"output": f"{five_images.output}-2"}))
    cut_crops(five_images, whole, resources)
    assert aligned == [0, 0, 1, 2]
    assert resumed == read_index(whole.store)
    assert resumed is not None
    assert (resumed["samples"], sum(count for _, count in resumed["files"])) == (9, 5)


def test_sources_and_targets_are_paired_by_their_keys(
    five_images: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    for number, name in enumerate(("4.jpg", "2.PNG", "0.png", "other.png")):
        Image.new("RGB", (80, 80), (10 * number,) * 3).save(folder / name)
    config = five_images.model_copy(update={"target": str(folder), "held_out": 1, "batch": 1})
    plan, resources = plan_crops(config), Resources(cpus=2, gpus=0)
    assert plan.targets is not None
    assert plan.store.root != plan_crops(five_images).store.root
    monkeypatch.setattr(crops, "run_stages", crops_in_place([]))
    cut_pairs(config, plan, resources)
    pairs = read_pairs(Crops(plan.store), Crops(plan.targets.store))
    inputs, targets = pairs.pairs(torch.arange(3))
    assert inputs[:, 0, 0, 0].tolist() == [0, 80, 160]
    assert targets[:, 0, 0, 0].tolist() == [20, 10, 0]
    assert plan.origin.crops == pairs.name
    result = begin_event(config, plan)
    assert [result[name] for name in ("pairs", "without_target", "without_source")] == [3, 2, 1]
    for name in ("4.jpg", "2.PNG", "0.png"):
        (folder / name).rename(folder / f"x{name}")
    plan = plan_crops(config)
    with pytest.raises(InputError, match=r"no image in .* has the key of one in"):
        cut_pairs(config, plan, resources)
    with pytest.raises(ConfigError, match=r"--target needs pairs of crops.*--prealigned"):
        plan_crops(config.model_copy(update={"prealigned": False}))


def test_other_crops_have_another_folder(five_images: TrainConfig) -> None:
    smaller = five_images.model_copy(update={"limit": 2})
    assert plan_crops(five_images).store.root == plan_crops(five_images).store.root
    assert plan_crops(five_images).store.root != plan_crops(smaller).store.root


def test_crops_of_earlier_versions_are_found(five_images: TrainConfig) -> None:
    plan = plan_crops(five_images.model_copy(update=EARLIER_ALIGNMENT))
    settings = asdict(plan.alignment)
    before = {name: value for name, value in settings.items() if name not in EARLIER_ALIGNMENT}
    shards = [[work.shard.shard_id, work.shard.etag] for work in plan.tasks]
    size, limit = five_images.part_size, five_images.limit
    args = {"alignment": before, "shards": shards, "part_size": size, "limit": limit}
    digest = hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest()[:12]
    assert plan.store.root.endswith(digest)
    assert plan_crops(five_images).alignment.icc == "apply"
    assert plan_crops(five_images).store.root != plan.store.root


def test_a_face_model_needs_known_crops(five_images: TrainConfig, tmp_path: Path) -> None:
    record = Path(str(five_images.model)) / "model.json"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(
        (Path(str(five_images.model)) / "model.safetensors").read_bytes()
    )
    (other / "model.json").write_text(record.read_text().replace('"faces"', '"unknown"'))
    with pytest.raises(ConfigError, match="--prealigned"):
        plan_crops(five_images.model_copy(update={"model": str(other), "prealigned": None}))
