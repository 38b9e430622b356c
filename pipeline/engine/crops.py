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
from pipeline.errors import InputError, StorageError
from pipeline.storage import Shard, Store, list_shards
from pipeline.table.spec import without_earlier
from pipeline.training.config import TrainConfig
from pipeline.training.settled import CROPS, Origin

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


class CropStage:
    """Turns a part of aligned faces into one file of crops."""

    def __init__(
        self,
        root: str,  # of the store that keeps them
        size: tuple[int, int],  # (height, width) of the faces
    ) -> None:
        self.root, self.size = root, size

    def __call__(self, row: Row) -> Row:
        return run_stage("write", self._work, row)

    def _work(self, row: Row) -> Row:
        import torch

        from pipeline.training.crops import put_crops

        faces = unpack(row["payload"])["pixels"].to_pylist()
        pixels = [np.frombuffer(content, np.uint8) for content in faces]
        done = blank_row("part", row["shard_id"], row["part"])
        for name in ("samples", "faces", "rejects", "reasons"):
            done[name] = row[name]
        images = np.stack(pixels) if pixels else np.empty(0, np.uint8)
        crops = torch.from_numpy(images.reshape(-1, *self.size, 3)).permute(0, 3, 1, 2)
        facts = {"samples": row["samples"], "reasons": json.loads(row["reasons"])}
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
    from pipeline.training.fresh import start_digest, starting_model
    from pipeline.training.restyle import check_request

    model = starting_model(config)
    check_request(config, model)
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
    options = config.read_options
    if shards is None:
        shards = list_shards(config.input, files_per_shard=config.files_per_shard, options=options)
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
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    origin = Origin(digest, start_digest(config, model))
    return CropPlan(origin, works, alignment, Store(Store(config.output).uri(f"{CROPS}/{digest}")))


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
        .map(CropStage(plan.store.root, plan.alignment.output_size), num_cpus=cpus.write)
    )
    return summaries(dataset)


def cut_crops(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Cut the crops that are not there, and write their index when all are.

    Raises `StorageError` where some could not be cut, when the others are, and `InputError` where
    no image gives any.
    """
    from pipeline.training.crops import CropFile, put_index, read_header, read_index

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
