"""Cut the crops of a training with Ray Data: read, align, write.

Each part becomes one file, even without a face, so that an interrupted run can skip it.
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
import torch

from pipeline.alignment import AlignmentSettings
from pipeline.engine.address import in_cluster
from pipeline.engine.capacity import Pools, max_cpu_actors
from pipeline.engine.cluster import Resources
from pipeline.engine.console.progress import enter_phase
from pipeline.engine.messages import (
    FaceBatch,
    Failure,
    Message,
    PartDone,
    ShardTask,
    to_row,
)
from pipeline.engine.stages import Align, Read, Stage
from pipeline.engine.stages.base import StageResources
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import Shard, Store, list_shards
from pipeline.table.spec import without_earlier
from pipeline.training.config import TrainConfig
from pipeline.training.data import (
    CropFile,
    match_keys,
    put_crops,
    put_index,
    put_pairs,
    read_header,
    read_index,
)
from pipeline.training.resume_check import CROPS, Origin

SUFFIX = ".safetensors"
READS_AT_ONCE = 16  # headers, one or two requests each


@dataclass(frozen=True)
class CropPlan:
    """Plan of the crops of a config: tasks, settings, and the store that holds them."""

    origin: Origin
    tasks: list[ShardTask]
    alignment: AlignmentSettings
    store: Store
    continued_from: dict[str, Any] | None = None  # state of an official training, for the log
    targets: CropPlan | None = None  # target images, if they differ from the inputs


class WriteCrops(Stage):
    """Writes the aligned faces of a part into one file of crops."""

    name = "write"
    takes = FaceBatch
    resources = StageResources("writer", cpus=0.25)

    def __init__(
        self,
        root: str,  # of the store
        size: tuple[int, int],  # (height, width) of the faces
        *,
        keeps_keys: bool = False,  # whether the file lists the keys of the images
    ) -> None:
        self.root, self.size, self.keeps_keys = root, size, keeps_keys

    def process(self, batch: FaceBatch) -> PartDone:
        """Write a part; only its counts are passed on."""
        counts = batch.counts
        pixels = [np.frombuffer(face, np.uint8) for face in batch.faces["pixels"].to_pylist()]
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
    """Return the file name of a part's crops; it depends on the input only."""
    return f"{shard_id}-{part:05d}{SUFFIX}"


def existing_parts(store: Store) -> dict[str, set[int]]:
    """Return the parts of each shard whose files exist."""
    parts: dict[str, set[int]] = {}
    for name in store.names():
        if name.endswith(SUFFIX):
            shard, _, part = name.removesuffix(SUFFIX).rpartition("-")
            parts.setdefault(shard, set()).add(int(part))
    return parts


def plan_crops(config: TrainConfig, shards: Iterator[Shard] | None = None) -> CropPlan:
    """List the input and plan its crops. Raises a `RequestError`.

    `shards` is the listing of the input, if `check_training` has already started it.
    """
    from pipeline.engine.resolve import alignment_settings
    from pipeline.models import treatment_for
    from pipeline.training.initial_model import start_digest, starting_model
    from pipeline.training.run import check_request

    model = starting_model(config)
    continued_from = check_request(config, model)
    treatment = treatment_for(model, prealigned=config.prealigned, identity="none", fit=config.fit)
    alignment = alignment_settings(config, model, treatment)
    if config.target and not treatment.prealigned:
        raise ConfigError(
            "--target needs pairs of crops that match pixel by pixel: align both sets first and "
            "add --prealigned"
        )
    plan = replace(
        _crop_plan(config, alignment, config.input, shards, start_digest(config, model)),
        continued_from=continued_from,
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
    """Return the plan of the images at `uri`; its store is named after the settings' digest."""
    options = config.read_options
    if shards is None:
        shards = list_shards(uri, files_per_shard=config.files_per_shard, options=options)
    tasks = [
        ShardTask(shard, config.part_size, take=config.limit, options=options) for shard in shards
    ]
    settings = {
        "alignment": without_earlier("settings.alignment", alignment.used()),
        "shards": [[task.shard_id, task.shard.etag] for task in tasks],
        "part_size": config.part_size,
        "limit": config.limit,
    }
    if any(task.shard.kind in ("tar", "zip") for task in tasks):
        settings |= without_earlier("layout", {"image_field": config.image_field})
    if config.image_column:
        settings["image_column"] = config.image_column
    if config.target:
        settings["keys"] = True
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    store = Store(Store(config.output).uri(f"{CROPS}/{digest}"))
    return CropPlan(Origin(digest, start), tasks, alignment, store)


def run_stages(
    config: TrainConfig, plan: CropPlan, tasks: Sequence[ShardTask], resources: Resources
) -> Iterator[Message]:
    """Run read, align and write on `tasks`; yield each message as it arrives."""
    import ray.data

    from pipeline.engine.pipeline import build_pipeline, run_pipeline
    from pipeline.engine.ray_callbacks import run_settings

    local = not in_cluster()
    aligners = max_cpu_actors(config.align_workers, resources, local)
    crops = WriteCrops(plan.store.root, plan.alignment.output_size, keeps_keys=bool(config.target))
    stages: tuple[Stage, ...] = (Read(), Align(plan.alignment), crops)
    pools = Pools.for_stages([type(stage) for stage in stages], resources, local, align=aligners)
    with run_settings():
        rows = [to_row(task) for task in tasks]
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        yield from run_pipeline(build_pipeline(source, stages, pools))


def cut_crops(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Cut the missing crops, then write the index of all.

    Raises `StorageError` if some failed, after the others are cut, and `InputError` if no image
    gives a crop.
    """
    if read_index(plan.store) is not None:
        return
    before = existing_parts(plan.store)
    tasks = [
        replace(task, existing=frozenset(before.get(task.shard_id, ()))) for task in plan.tasks
    ]
    files, samples, reasons, failures = [], 0, Counter[str](), []
    for message in run_stages(config, plan, tasks, resources):
        enter_phase(f"cutting crops: {samples} images done")
        if isinstance(message, Failure):
            where = f"shard '{message.shard_id}', part {message.part}"
            failures.append(f"{where}: {message.stage}: {message.error}")
        if isinstance(message, PartDone):
            files.append(CropFile(file_name(message.shard_id, message.part), message.counts.faces))
            samples += message.counts.samples
            reasons.update(message.counts.reasons)
    if failures:
        raise StorageError(
            f"not all crops are cut, run again to continue; failed: {len(failures)}, "
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
    """Cut the crops of sources and targets, and write which belong together.

    Raises the errors of `cut_crops`, and `InputError` if no key is in both sets, or if a key is not
    unique in its set.
    """
    cut_crops(config, plan, resources)
    if plan.targets is None:
        return
    target = str(config.target)
    cut_crops(config.model_copy(update={"input": target}), plan.targets, resources)
    numbers, ambiguous = match_keys(_keys(plan.store), _keys(plan.targets.store))
    if ambiguous:
        listed = "; ".join(
            f"'{name}' ({', '.join(keys[:3])})" for name, keys in list(ambiguous.items())[:3]
        )
        raise InputError(f"--target: {len(ambiguous)} names are of several images: {listed}")
    if not len(numbers):
        raise InputError(
            f"no image in '{target}' has the key of one in '{config.input}': pairs are called "
            "alike, except for their extensions"
        )
    put_pairs(plan.store, numbers)


def _keys(store: Store) -> list[str]:
    """Return the keys of all crops in `store`, in order."""
    names = [name for name, _ in (read_index(store) or {"files": []})["files"]]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        headers = pool.map(partial(read_header, store), names)
        return [key for _, facts in headers for key in facts["keys"]]
