"""Cutting the crops that a training reads: read, align and write, all of it through Ray Data.

A part becomes one file, also where it holds no face, so that what is there need not be cut again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.alignment import AlignmentSettings
from pipeline.engine.address import in_cluster
from pipeline.engine.capacity import Pools, max_cpu_actors
from pipeline.engine.cluster import Resources
from pipeline.engine.messages import (
    FaceBatch,
    Failure,
    Message,
    PartDone,
    ShardTask,
    to_row,
)
from pipeline.engine.progress import doing
from pipeline.engine.stages import Align, Read, Stage
from pipeline.engine.stages.base import StageResources
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import Shard, Store, list_shards
from pipeline.table.spec import without_earlier
from pipeline.training.config import TrainConfig
from pipeline.training.resume_check import CROPS, Origin

SUFFIX = ".safetensors"
READS_AT_ONCE = 16  # of headers, each a request or two


@dataclass(frozen=True)
class CropPlan:
    """What crops a config asks for, where they are kept, and what is made of them."""

    origin: Origin
    tasks: list[ShardTask]
    alignment: AlignmentSettings
    store: Store
    samples: int | None = None
    going_on: dict[str, Any] | None = None  # what the training goes on with, for the log
    targets: CropPlan | None = None  # what the encoder is to give for these, where it is not these
    keeps_keys: bool = False


class WriteCrops(Stage):
    """Writes the aligned faces of a part into one file of crops."""

    name = "write"
    takes = FaceBatch
    resources = StageResources("writer", cpus=0.25)

    def __init__(
        self,
        root: str,  # of the store that keeps them
        size: tuple[int, int],  # (height, width) of the faces
        *,
        keeps_keys: bool = False,  # whether the file says what the images are called
    ) -> None:
        self.root, self.size, self.keeps_keys = root, size, keeps_keys

    def process(self, batch: FaceBatch) -> PartDone:
        """Write a part; only its counts go on."""
        import torch

        from pipeline.training.data import put_crops

        counts = batch.counts
        pixels = [np.frombuffer(one, np.uint8) for one in batch.faces["pixels"].to_pylist()]
        images = np.stack(pixels) if pixels else np.empty(0, np.uint8)
        crops = torch.from_numpy(images.reshape(-1, *self.size, 3)).permute(0, 3, 1, 2)
        facts: dict[str, Any] = {
            "samples": counts.samples,
            "reasons": dict(sorted(counts.reasons.items())),
        }
        if self.keeps_keys:
            facts["keys"] = batch.faces["key"].to_pylist()
        put_crops(Store(self.root), file_name(batch.shard_id, batch.part), crops, facts)
        return PartDone(batch.shard, batch.part, counts)


def file_name(shard_id: str, part: int) -> str:
    """Return the name of a part's crops: a function of the input alone."""
    return f"{shard_id}-{part:05d}{SUFFIX}"


def cut_before(store: Store) -> dict[str, set[int]]:
    """The parts of each shard whose files are there."""
    parts: dict[str, set[int]] = {}
    for name in store.names():
        if name.endswith(SUFFIX):
            shard, _, part = name.removesuffix(SUFFIX).rpartition("-")
            parts.setdefault(shard, set()).add(int(part))
    return parts


def plan_crops(config: TrainConfig, shards: Iterator[Shard] | None = None) -> CropPlan:
    """List the input and see how its images are to be cut. Raises a `RequestError`.

    `shards` is the input's listing where `check_training` has begun it.
    """
    from pipeline.models import treatment_for
    from pipeline.training.initial_model import start_digest, starting_model
    from pipeline.training.run import check_request

    model = starting_model(config)
    going_on = check_request(config, model)
    treatment = treatment_for(model, prealigned=config.prealigned, identity="none", fit=config.fit)
    alignment = AlignmentSettings(
        prealigned=treatment.prealigned,
        fit=treatment.fit,
        turns=config.turns,
        search_pixels=config.search_pixels,
        check_below=config.check_below,
        min_face_px=config.min_face,
        icc=config.icc,
        output_size=model.input_size,
    )
    if config.target and not treatment.prealigned:
        raise ConfigError(
            "--target is for pairs of crops, which belong together pixel by pixel: align both "
            "before and add --prealigned"
        )
    plan = replace(
        _crop_plan(config, alignment, config.input, shards, start_digest(config, model)),
        going_on=going_on,
    )
    if not config.target:
        return plan
    targets = _crop_plan(config, alignment, config.target, None, plan.origin.start)
    crops = f"{plan.origin.crops}+{targets.origin.crops}"
    return replace(plan, origin=replace(plan.origin, crops=crops), targets=targets)


def _crop_plan(
    config: TrainConfig,
    alignment: AlignmentSettings,
    uri: str,
    shards: Iterator[Shard] | None,
    start: str,
) -> CropPlan:
    """How the images at `uri` are cut, and where their crops are kept."""
    options = config.read_options
    if shards is None:
        shards = list_shards(uri, files_per_shard=config.files_per_shard, options=options)
    tasks = [
        ShardTask(shard, config.part_size, take=config.limit, options=options) for shard in shards
    ]
    asked = {
        "alignment": without_earlier("settings.alignment", alignment.used()),
        "shards": [[task.shard_id, task.shard.etag] for task in tasks],
        "part_size": config.part_size,
        "limit": config.limit,
    }
    if any(task.shard.kind in ("tar", "zip") for task in tasks):
        asked |= without_earlier("layout", {"image_field": config.image_field})
    if config.image_column:
        asked["image_column"] = config.image_column
    if config.target:
        asked["keys"] = True
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    store = Store(Store(config.output).uri(f"{CROPS}/{digest}"))
    origin = Origin(digest, start)
    return CropPlan(origin, tasks, alignment, store, keeps_keys=bool(config.target))


def run_stages(
    config: TrainConfig, plan: CropPlan, tasks: Sequence[ShardTask], resources: Resources
) -> Iterator[Message]:
    """Read, align and write what `tasks` leave to do; yields each message as it is finished."""
    import ray.data

    from pipeline.engine.pipeline import build_pipeline, run_pipeline
    from pipeline.engine.ray_callbacks import run_settings

    local = not in_cluster()
    aligners = max_cpu_actors(config.align_workers, resources, local)
    crops = WriteCrops(plan.store.root, plan.alignment.output_size, keeps_keys=plan.keeps_keys)
    stages: tuple[Stage, ...] = (Read(), Align(plan.alignment), crops)
    pools = Pools.for_stages([type(stage) for stage in stages], resources, local, align=aligners)
    with run_settings():
        rows = [to_row(task) for task in tasks]
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        yield from run_pipeline(build_pipeline(source, stages, pools))


def cut_crops(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Cut the crops that are not there, and write their index when all are.

    Raises `StorageError` where some could not be cut, when the others are, and `InputError` where
    no image gives any.
    """
    from pipeline.training.data import CropFile, put_index, read_header, read_index

    if read_index(plan.store) is not None:
        return
    before = cut_before(plan.store)
    tasks = [
        replace(task, existing=frozenset(before.get(task.shard_id, ()))) for task in plan.tasks
    ]
    files, samples, reasons, failures = [], 0, Counter[str](), []
    for message in run_stages(config, plan, tasks, resources):
        doing(f"cutting crops: {samples} images done")
        if isinstance(message, Failure):
            where = f"shard '{message.shard_id}', part {message.part}"
            failures.append(f"{where}: {message.stage}: {message.error}")
        if isinstance(message, PartDone):
            files.append(CropFile(file_name(message.shard_id, message.part), message.counts.faces))
            samples += message.counts.samples
            reasons.update(message.counts.reasons)
    if failures:
        raise StorageError(
            f"not all crops are cut, run again to go on; failed: {len(failures)}, "
            f"first {'; '.join(failures[:3])}"
        )
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        names = (file_name(task.shard_id, part) for task in tasks for part in task.existing)
        for file, facts in pool.map(partial(read_header, plan.store), names):
            files.append(file)
            samples += int(facts["samples"])
            reasons.update(facts["reasons"])
    filled = sorted((file for file in files if file.count), key=lambda file: file.name)
    if not filled:
        raise InputError(f"'{config.input}' holds no image that could be cut: {dict(reasons)}")
    facts = {"samples": samples, "rejects_by_reason": dict(sorted(reasons.items()))}
    put_index(plan.store, filled, facts)


def cut_pairs(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Cut the sources and their targets, and write down which belong together.

    Raises as `cut_crops` does, and `InputError` where no key is in both sets, or several images of
    one have the same.
    """
    from pipeline.training.data import match_keys, put_pairs

    cut_crops(config, plan, resources)
    if plan.targets is None:
        return
    target = str(config.target)
    cut_crops(config.model_copy(update={"input": target}), plan.targets, resources)
    numbers, several = match_keys(_keys(plan.store), _keys(plan.targets.store))
    if several:
        listed = "; ".join(
            f"'{name}' ({', '.join(keys[:3])})" for name, keys in list(several.items())[:3]
        )
        raise InputError(f"--target: {len(several)} names that several images have: {listed}")
    if not len(numbers):
        raise InputError(
            f"no image in '{target}' has the key of one in '{config.input}': pairs are called "
            "alike, up to their extensions"
        )
    put_pairs(plan.store, numbers)


def _keys(store: Store) -> list[str]:
    """The keys of all crops in `store`, in their order."""
    from pipeline.training.data import read_header, read_index

    names = [name for name, _ in (read_index(store) or {"files": []})["files"]]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = pool.map(partial(read_header, store), names)
        return [key for _, facts in found for key in facts["keys"]]
