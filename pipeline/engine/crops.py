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
from typing import Any, cast

import numpy as np

from pipeline.alignment import AlignmentSettings
from pipeline.engine.address import in_cluster
from pipeline.engine.align import AlignStage
from pipeline.engine.cluster import Resources
from pipeline.engine.dataset import (
    configure_context,
    core_actors,
    most_readers,
    stage_cpus,
    summaries,
)
from pipeline.engine.progress import doing
from pipeline.engine.read import ShardWork, read_parts
from pipeline.engine.rows import Row, blank_row, run_stage, unpack
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
    works: list[ShardWork]
    alignment: AlignmentSettings
    store: Store
    samples: int | None = None
    going_on: dict[str, Any] | None = None  # what the training goes on with, for the log
    targets: CropPlan | None = None  # what the encoder is to give for these, where it is not these
    keeps_keys: bool = False


class CropStage:
    """Turns a part of aligned faces into one file of crops."""

    def __init__(
        self,
        root: str,  # of the store that keeps them
        size: tuple[int, int],  # (height, width) of the faces
        *,
        keeps_keys: bool = False,  # whether the file says what the images are called
    ) -> None:
        self.root, self.size, self.keeps_keys = root, size, keeps_keys

    def __call__(self, row: Row) -> Row:
        return run_stage("write", self._work, row)

    def _work(self, row: Row) -> Row:
        import torch

        from pipeline.training.data import put_crops

        payload = unpack(row["payload"])
        faces = payload["pixels"].to_pylist()
        pixels = [np.frombuffer(content, np.uint8) for content in faces]
        done = blank_row("part", row["shard_id"], row["part"])
        for name in ("samples", "faces", "rejects", "reasons"):
            done[name] = row[name]
        images = np.stack(pixels) if pixels else np.empty(0, np.uint8)
        crops = torch.from_numpy(images.reshape(-1, *self.size, 3)).permute(0, 3, 1, 2)
        facts = {"samples": row["samples"], "reasons": json.loads(row["reasons"])}
        if self.keeps_keys:
            facts["keys"] = payload["key"].to_pylist()
        put_crops(Store(self.root), file_name(row), crops, facts)
        return done


def file_name(row: Row) -> str:
    """The name of a part's crops: a function of the input alone."""
    return f"{row['shard_id']}-{int(row['part']):05d}{SUFFIX}"


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
    works = [
        ShardWork(shard, config.part_size, take=config.limit, options=options) for shard in shards
    ]
    asked = {
        "alignment": without_earlier("settings.alignment", alignment.used()),
        "shards": [[work.shard.shard_id, work.shard.etag] for work in works],
        "part_size": config.part_size,
        "limit": config.limit,
    }
    if any(work.shard.kind in ("tar", "zip") for work in works):
        asked |= without_earlier("layout", {"image_field": config.image_field})
    if config.image_column:
        asked["image_column"] = config.image_column
    if config.target:
        asked["keys"] = True
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    store = Store(Store(config.output).uri(f"{CROPS}/{digest}"))
    origin = Origin(digest, start)
    return CropPlan(origin, works, alignment, store, keeps_keys=bool(config.target))


def crop_rows(
    config: TrainConfig, plan: CropPlan, works: Sequence[ShardWork], resources: Resources
) -> Iterator[Row]:
    """Read, align and write what `works` leave to do; a row a part, as they are finished."""
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    configure_context()
    items, local = [work.to_row() for work in works], not in_cluster()
    aligners = core_actors(config.align_workers, resources, local)
    readers = TaskPoolStrategy(size=most_readers(local))
    cpus = stage_cpus(None, resources, local)
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(read_parts, num_cpus=cpus.read, compute=readers)
        .map(
            cast(Any, AlignStage),
            fn_constructor_args=(plan.alignment,),
            compute=ActorPoolStrategy(min_size=1, max_size=aligners),
            num_cpus=cpus.align,
        )
        .map(
            CropStage(plan.store.root, plan.alignment.output_size, keeps_keys=plan.keeps_keys),
            num_cpus=cpus.write,
        )
    )
    return summaries(dataset)


def cut_crops(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Cut the crops that are not there, and write their index when all are.

    Raises `StorageError` where some could not be cut, when the others are, and `InputError` where
    no image gives any.
    """
    from pipeline.training.data import CropFile, put_index, read_header, read_index

    if read_index(plan.store) is not None:
        return
    before = cut_before(plan.store)
    works = [
        replace(work, existing=frozenset(before.get(work.shard.shard_id, ())))
        for work in plan.works
    ]
    files, samples, reasons, failures = [], 0, Counter[str](), []
    for row in crop_rows(config, plan, works, resources):
        doing(f"cutting crops: {samples} images done")
        if row["kind"] == "failed":
            failures.append(f"shard '{row['shard_id']}', part {row['part']}: {row['error']}")
        if row["kind"] == "part":
            files.append(CropFile(file_name(row), int(row["faces"])))
            samples += int(row["samples"])
            reasons.update(json.loads(row["reasons"]))
    if failures:
        raise StorageError(
            f"not all crops are cut, run again to go on; failed: {len(failures)}, "
            f"first {'; '.join(failures[:3])}"
        )
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        names = (
            file_name({"shard_id": work.shard.shard_id, "part": part})
            for work in works
            for part in work.existing
        )
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
