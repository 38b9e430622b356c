"""Training on a cluster: Ray Data cuts the crops, Ray Train runs the processes.

Crops are cut once and kept in the run's folder: a run that goes on does not align again, and which
image is in which batch depends on their order there, not on what Ray happens to finish first.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.engine.address import in_cluster
from pipeline.engine.cluster import Resources, gist, running_ray
from pipeline.engine.progress import doing
from pipeline.engine.training.crops import CropPlan, cut_pairs, plan_crops
from pipeline.errors import ConfigError, PipelineError
from pipeline.inversion import ready_device
from pipeline.storage import Shard, Store
from pipeline.training.config import TrainConfig
from pipeline.training.resume_check import ENCODER, check_settings

DONE = "_done.json"
POLL_S = 2.0
TOLD_EVERY_S = 600.0
TRAIN_ENVIRONMENT = {
    # Paths of a config are relative to where the job was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Importing PyTorch on a busy machine takes longer than the minute that Ray Train allows.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def train_in_worker(settings: dict[str, Any]) -> None:
    """What each of Ray Train's processes does."""
    import ray.train
    import ray.train.torch

    from pipeline.training.data import Crops, read_pairs
    from pipeline.training.distributed import join_group
    from pipeline.training.run import train_restyle

    config = TrainConfig(**settings["config"])
    device = str(ray.train.torch.get_device()) if settings["on_gpu"] else "cpu"
    group = join_group()
    crops = Crops(Store(settings["crops"]))
    targets = settings["targets"]
    pairs = read_pairs(crops, Crops(Store(targets))) if targets else crops
    done = train_restyle(config, pairs, group, device)
    if group.is_main_process:
        Store(config.output).put(DONE, json.dumps(done).encode())


def check_workers(config: TrainConfig, resources: Resources, *, local: bool) -> None:
    """Raise `ConfigError` for more workers than there is room for, which Ray Train would await.

    A cluster may start nodes when they are asked for, and has none at first.
    """
    if not local:
        return
    if resources.on_gpu(config.device) and config.workers > resources.gpus:
        raise ConfigError(
            f"--workers {config.workers}, each with a GPU, but this machine has "
            f"{resources.gpus:.0f}: use fewer, or --device cpu"
        )
    if config.workers > resources.cpus:
        raise ConfigError(f"{config.workers} workers, but Ray offers {resources.cpus:.0f} cores")


def _trainer(config: TrainConfig, plan: CropPlan, resources: Resources) -> Any:
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

    from pipeline.engine.training.trainer import Trainer

    output = Store(config.output)
    with_gpu = resources.on_gpu(config.device)
    return Trainer(
        train_in_worker,
        train_loop_config={
            "config": config.model_dump(),
            "crops": plan.store.root,
            "targets": plan.targets.store.root if plan.targets else None,
            "on_gpu": with_gpu,
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=with_gpu),
        run_config=RunConfig(
            name="_ray",
            storage_path=output.path(),
            storage_filesystem=PyFileSystem(FSSpecHandler(output.fs)),
            failure_config=FailureConfig(
                max_failures=config.restarts,
                # Its default is to wait without end for workers that no node has room for.
                controller_failure_limit=config.restarts,
            ),
        ),
    )


@contextmanager
def _lines_of(config: TrainConfig) -> Iterator[None]:
    """Print each line of the log that the block adds: the workers have no terminal."""
    from pipeline.training.train_log import read_reports

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


def beginning(
    config: TrainConfig,
    store: Store,
    going_on: dict[str, Any] | None = None,
    targets: Store | None = None,
) -> dict[str, Any]:
    """What was read and cut, and what is trained on: the line before those of the log.

    `going_on` is what the model's own training has left, told where this one begins with it.

    Raises `InputError` where the crops in `store` are too few.
    """
    from pipeline.training.data import Crops, Pairs, read_index, read_pairs
    from pipeline.training.run import split_counts

    crops: Crops | Pairs = Crops(store)
    facts, partners = read_index(store) or {}, {}
    if targets:
        alone, others = len(crops), Crops(targets)
        crops = read_pairs(Crops(store), others)
        partners = {
            "pairs": len(crops),
            "without_target": alone - len(crops),
            "without_source": len(others) - len(crops),
        }
    trained_on = sum(split_counts(crops, config.held_out, config.batch))
    begins = not Store(config.output).exists(f"{ENCODER}.pt")
    return {
        "event": "training_begins",
        **({"goes_on_with": going_on} if going_on and begins else {}),
        "samples": facts["samples"],
        "rejects_by_reason": facts["rejects_by_reason"],
        "crops": len(crops),
        **partners,
        "held_out": len(crops) - trained_on,
        "trained_on": trained_on,
    }


def run_training(config: TrainConfig, shards: Iterator[Shard] | None = None) -> dict[str, Any]:
    """Cut the crops, train, and give what the run came to, JSON-ready.

    `shards` is the input's listing where `check_training` has begun it.

    Raises a `RequestError` where the request is wrong, which is also where the output holds a
    training of other settings, `PipelineError` where the run failed: the same call goes on from the
    last checkpoint.
    """
    check_settings(config)
    if not in_cluster():
        ready_device(config.device)  # refuses a GPU that is not there
    doing("loading the model and listing the images")
    plan = plan_crops(config, shards)
    check_settings(config, plan.origin)
    output = Store(config.output)
    output.remove(DONE)
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _failures(), running_ray() as resources:
        check_workers(config, resources, local=not in_cluster())
        doing("cutting crops")
        cut_pairs(config, plan, resources)
        targets = plan.targets.store if plan.targets else None
        begins = beginning(config, plan.store, plan.going_on, targets)
        print(json.dumps(begins), flush=True)
        trainer = _trainer(config, plan, resources)
        doing("training", every_s=TOLD_EVERY_S)  # its own lines tell how far it is
        with _lines_of(config):
            trainer.fit()
    done: dict[str, Any] = json.loads(output.get(DONE))
    return done | {"output": output.root}


@contextmanager
def _failures() -> Iterator[None]:
    """Turn Ray's own failures, and those of its workers, into a `PipelineError` of one line.

    What a worker refused is raised as it was in the worker.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        from pipeline.engine.training.trainer import refusal_in

        if refused := refusal_in(error):
            raise refused from error
        raise PipelineError(f"{gist(error)}; run again to go on") from error
