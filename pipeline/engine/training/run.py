"""Train with Ray: Ray Data cuts the crops, Ray Train runs the processes.

Crops are cut once and stored in the run's folder: a resumed run does not align again, and the order
of the images in batches depends on the stored order, not on the order in which Ray finishes parts.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

# First: it sets the environment that Ray reads when it is imported.
from pipeline.engine.cluster import RaySession, Resources, summarize_error

# isort: split
from pipeline.engine.address import in_cluster
from pipeline.engine.console.progress import enter_phase
from pipeline.engine.training.crops import CropPlan, cut_pairs, plan_crops
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.inversion import ready_device
from pipeline.storage import Shard, Store
from pipeline.training.config import TrainConfig
from pipeline.training.data import CropPairs, Crops, read_index, read_pairs
from pipeline.training.distributed import join_group
from pipeline.training.resume_check import ENCODER, check_settings
from pipeline.training.run import split_counts, train_restyle
from pipeline.training.train_log import read_reports

_LOGGER = logging.getLogger(__name__)
DONE = "_done.json"
POLL_S = 2.0
REPORT_EVERY_S = 600.0
TRAIN_ENVIRONMENT = {
    # Paths of a config are relative to where the job was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Importing PyTorch on a busy machine takes longer than the minute that Ray Train allows.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def train_in_worker(settings: dict[str, Any]) -> None:
    """Train in one of Ray Train's processes."""
    import ray.train
    import ray.train.torch

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
    """Raise `ConfigError` if this machine cannot run all workers: Ray Train would wait for ever.

    Not checked on a cluster, which may start nodes on request.
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
                # The default waits without limit for workers that fit on no node.
                controller_failure_limit=config.restarts,
            ),
        ),
    )


@contextmanager
def _reporting_log(config: TrainConfig, report: Callable[[str], None]) -> Iterator[None]:
    """Report each line that the block adds to the training log: the workers have no terminal."""
    store, ended = Store(config.output), threading.Event()
    reported = {json.dumps(line) for line in read_reports(store, ENCODER)}

    def follow() -> None:
        last = False
        while not last:
            last = ended.wait(POLL_S)
            try:
                lines = read_reports(store, ENCODER)
            except StorageError as error:  # the training goes on, and the next poll reads again
                _LOGGER.warning("the training log cannot be read: %s", error)
                continue
            for line in map(json.dumps, lines):
                if line not in reported:
                    reported.add(line)
                    report(line)

    thread = threading.Thread(target=follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def begin_event(config: TrainConfig, plan: CropPlan) -> dict[str, Any]:
    """Return the event `training_begins`: numbers of samples, crops, pairs and held-out crops.

    Raises `InputError` if there are too few crops.
    """
    sources = Crops(plan.store)
    crops: Crops | CropPairs = sources
    facts, partners = read_index(plan.store) or {}, {}
    if plan.targets:
        targets = Crops(plan.targets.store)
        crops = read_pairs(sources, targets)
        partners = {
            "pairs": len(crops),
            "without_target": len(sources) - len(crops),
            "without_source": len(targets) - len(crops),
        }
    trained_on = sum(split_counts(crops, config.held_out, config.batch))
    begins = not Store(config.output).exists(f"{ENCODER}.pt")
    return {
        "event": "training_begins",
        **({"goes_on_with": plan.continued_from} if plan.continued_from and begins else {}),
        "samples": facts["samples"],
        "rejects_by_reason": facts["rejects_by_reason"],
        "crops": len(crops),
        **partners,
        "held_out": len(crops) - trained_on,
        "trained_on": trained_on,
    }


def run_training(
    config: TrainConfig,
    shards: Iterator[Shard] | None = None,
    report: Callable[[str], None] = _LOGGER.info,
) -> dict[str, Any]:
    """Cut the crops and train; return the JSON-ready result.

    `shards` is the listing of the input, if `check_training` has already started it. `report` takes
    each line of the training log, JSON.

    Raises a `RequestError` for a wrong request, such as an output with a training of other
    settings, and `PipelineError` if the run failed: the same call continues from the last
    checkpoint.
    """
    check_settings(config)
    if not in_cluster():
        ready_device(config.device)  # raises if the GPU is missing
    enter_phase("loading the model and listing the images")
    plan = plan_crops(config, shards)
    check_settings(config, plan.origin)
    output = Store(config.output)
    output.remove(DONE)
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _failures(), RaySession() as resources:
        check_workers(config, resources, local=not in_cluster())
        enter_phase("cutting crops")
        cut_pairs(config, plan, resources)
        report(json.dumps(begin_event(config, plan)))
        trainer = _trainer(config, plan, resources)
        enter_phase("training", every_s=REPORT_EVERY_S)  # the log's lines show the progress
        with _reporting_log(config, report):
            trainer.fit()
    done: dict[str, Any] = json.loads(output.get(DONE))
    return done | {"output": output.root}


@contextmanager
def _failures() -> Iterator[None]:
    """Turn failures of Ray and of its workers into a `PipelineError` of one line.

    A `RequestError` of a worker is raised unchanged.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        from pipeline.engine.training.trainer import refusal_in

        if refused := refusal_in(error):
            raise refused from error
        raise PipelineError(f"{summarize_error(error)}; run again to continue") from error
