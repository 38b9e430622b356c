"""Training on a cluster: Ray Data cuts the crops, Ray Train runs the processes.

Crops are cut once and kept in the run's folder: a run that goes on does not align again, and which
image is in which batch depends on their order there, not on what Ray happens to finish first.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.alignment import AlignmentSettings
from pipeline.engine.align import AlignStage
from pipeline.engine.cluster import Resources, running_ray
from pipeline.engine.dataset import (
    ALIGN_CPUS,
    READ_CPUS,
    READERS,
    WRITE_CPUS,
    configure_context,
    summaries,
)
from pipeline.engine.read import ShardWork, read_parts
from pipeline.engine.rows import Row, blank_row, run_stage, unpack
from pipeline.errors import ConfigError, InputError, PipelineError, StorageError
from pipeline.storage import Store, list_shards, without_secrets
from pipeline.training.config import TrainConfig
from pipeline.training.settled import ENCODER, check_settings

CROPS = "crops"
DONE = "_done.json"
POLL_S = 2.0
TRAIN_ENVIRONMENT = {
    # Paths of a config are relative to where the job was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Importing PyTorch on a busy machine takes longer than the minute that Ray Train allows.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True)
class CropPlan:
    """What crops a config asks for, and where they are kept."""

    works: list[ShardWork]
    alignment: AlignmentSettings
    store: Store
    samples: int | None = None


class CropStage:
    """Turns a part of aligned faces into one file of crops."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __call__(self, row: Row) -> Row:
        return run_stage("write", self._work, row)

    def _work(self, row: Row) -> Row:
        import torch

        from pipeline.training.crops import put_crops

        table, shape = unpack(row["payload"]), tuple(json.loads(row["summary"]))
        pixels = [np.frombuffer(content, np.uint8) for content in table["pixels"].to_pylist()]
        done = blank_row("part", row["shard_id"], row["part"])
        for name in ("samples", "faces", "rejects", "reasons"):
            done[name] = row[name]
        if pixels:
            images = torch.from_numpy(np.stack(pixels).reshape(-1, *shape, 3))
            put_crops(Store(self.root), file_name(row), images.permute(0, 3, 1, 2))
        return done


class SizedAlignStage(AlignStage):
    """Alignment that tells the crops' height and width to the stage after it."""

    def __init__(self, settings: AlignmentSettings) -> None:
        super().__init__(settings)
        self.shape = json.dumps(settings.output_size)

    def __call__(self, row: Row) -> Row:
        return {**super().__call__(row), "summary": self.shape}


def file_name(row: Row) -> str:
    """The name of a part's crops: a function of the input alone."""
    return f"{row['shard_id']}-{int(row['part']):05d}.safetensors"


def plan_crops(config: TrainConfig) -> CropPlan:
    """List the input and see how its images are to be cut. Raises a `RequestError`."""
    from pipeline.models import treatment_for
    from pipeline.training.fresh import starting_model
    from pipeline.training.published import encoder_plan

    model = starting_model(config)
    encoder_plan(config, model)  # refuses steps that the encoder cannot make
    treatment = treatment_for(model, prealigned=config.prealigned, identity="none", fit=config.fit)
    alignment = AlignmentSettings(
        prealigned=treatment.prealigned,
        fit=treatment.fit,
        min_face_px=config.min_face,
        output_size=model.input_size,
    )
    works = [
        ShardWork(shard, config.part_size, take=config.limit)
        for shard in list_shards(config.input, files_per_shard=config.files_per_shard)
    ]
    asked = {
        "alignment": asdict(alignment),
        "shards": [[work.shard.shard_id, work.shard.etag] for work in works],
        "part_size": config.part_size,
        "limit": config.limit,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return CropPlan(works, alignment, Store(Store(config.output).uri(f"{CROPS}/{digest}")))


def cut_crops(config: TrainConfig, plan: CropPlan, resources: Resources) -> None:
    """Read, align and write the crops that are not there, all of them through Ray Data."""
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.training.crops import CropFile, put_index, read_index

    if read_index(plan.store) is not None:
        return
    configure_context()
    items = [work.to_row() for work in plan.works]
    actors = config.align_workers or max(1, int((resources.cpus - 1) / 2))
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(read_parts, num_cpus=READ_CPUS, compute=TaskPoolStrategy(size=READERS))
        .map(
            cast(Any, SizedAlignStage),
            fn_constructor_args=(plan.alignment,),
            compute=ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=ALIGN_CPUS,
        )
        .map(CropStage(plan.store.root), num_cpus=WRITE_CPUS)
    )
    files, samples, reasons = [], 0, Counter[str]()
    for row in summaries(dataset):
        if row["kind"] == "failed":
            raise StorageError(f"shard '{row['shard_id']}', part {row['part']}: {row['error']}")
        if row["kind"] == "part":
            samples += int(row["samples"])
            reasons.update(json.loads(row["reasons"]))
            if row["faces"]:
                files.append(CropFile(file_name(row), int(row["faces"])))
    if not files:
        raise InputError(f"'{config.input}' holds no image that could be cut: {dict(reasons)}")
    facts = {"samples": samples, "rejects_by_reason": dict(sorted(reasons.items()))}
    put_index(plan.store, sorted(files, key=lambda file: file.name), facts)


def train_in_worker(settings: dict[str, Any]) -> None:
    """What each of Ray Train's processes does."""
    import ray.train
    import ray.train.torch

    from pipeline.training.crops import Crops
    from pipeline.training.parallel import join_group
    from pipeline.training.restyle import train_restyle

    config = TrainConfig(**settings["config"])
    device = str(ray.train.torch.get_device()) if settings["on_gpu"] else "cpu"
    group = join_group()
    done = train_restyle(config, Crops(Store(settings["crops"])), group, device)
    if group.leads:
        Store(config.output).put(DONE, json.dumps(done).encode())


def _trainer(config: TrainConfig, crops: Store, resources: Resources) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    output = Store(config.output)
    on_gpu = config.device == "cuda" or (config.device == "auto" and resources.gpus > 0)
    return TorchTrainer(
        train_in_worker,
        train_loop_config={
            "config": config.model_dump(),
            "crops": crops.root,
            "on_gpu": on_gpu,
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=on_gpu),
        run_config=RunConfig(
            name="_ray",
            storage_path=output.path(),
            storage_filesystem=PyFileSystem(FSSpecHandler(output.fs)),
            failure_config=FailureConfig(max_failures=config.restarts),
        ),
    )


@contextmanager
def _lines_of(config: TrainConfig) -> Iterator[None]:
    """Print each line of the log that the block adds: the workers have no terminal."""
    from pipeline.training.journal import read_reports

    store, ended = Store(config.output), threading.Event()
    seen = {json.dumps(line) for line in read_reports(store, ENCODER)}

    def follow() -> None:
        last = False
        while not last:
            last = ended.wait(POLL_S)
            for line in map(json.dumps, read_reports(store, ENCODER)):
                if line not in seen:
                    seen.add(line)
                    print(line, flush=True)

    thread = threading.Thread(target=follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_training(config: TrainConfig) -> dict[str, Any]:
    """Cut the crops, train, and give what the run came to, JSON-ready.

    Raises a `RequestError` where the request is wrong, which is also where the output holds a
    training of other settings, `PipelineError` where the run failed: the same call goes on from the
    last checkpoint.
    """
    check_settings(config)
    plan = plan_crops(config)
    output = Store(config.output)
    output.remove(DONE)
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _failures(), running_ray() as resources:
        if config.workers > resources.cpus:
            raise ConfigError(
                f"{config.workers} workers, but Ray offers {resources.cpus:.0f} cores"
            )
        cut_crops(config, plan, resources)
        trainer = _trainer(config, plan.store, resources)
        with _lines_of(config):
            trainer.fit()
    done: dict[str, Any] = json.loads(output.get(DONE))
    return done | {"output": output.root}


@contextmanager
def _failures() -> Iterator[None]:
    """Turn Ray's own failures, and those of its workers, into a `PipelineError` of one line."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        gist = [line for line in str(error).strip().splitlines() if line.strip()][-1:]
        text = ": ".join([type(error).__name__, *gist])
        raise PipelineError(f"{without_secrets(text)}; run again to go on") from error
