"""What is wrong with a training and shows before Ray and PyTorch are imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipeline.engine.address import check_address
from pipeline.engine.preflight import access_refused
from pipeline.errors import InputError
from pipeline.metrics.names import check_identity
from pipeline.models.files import check_model, check_model_file
from pipeline.storage import (
    Shard,
    check_apart,
    check_output,
    count_samples,
    is_local,
    list_shards,
)
from pipeline.training.config import TrainConfig
from pipeline.training.resume_check import TRAINING_OUTPUT, check_settings

# A packed archive, or one in a bucket, is read to be counted: not a large one.
_READ_TO_COUNT = 16 << 20  # bytes


def check_training(config: TrainConfig) -> Iterator[Shard]:
    """The shards of the input, when all that the request names is there, and images enough.

    Raises a `RequestError` for what is not there, and for fewer images than are held out, as far
    as that shows without reading much: faces that no image gives are found out when crops are cut.
    """
    inputs = [config.input, *([config.target] if config.target else [])]
    with access_refused(config.output, *inputs):
        check_address()
        for uri in inputs:
            check_apart(uri, config.output)
        check_output(config.output, TRAINING_OUTPUT)
        check_settings(config)
        _check_weights(config)
        if config.target:
            enough_images(config.model_copy(update={"input": config.target}))
        return enough_images(config)


def _check_weights(config: TrainConfig) -> None:
    """Raise `ModelError` for a model or a file of weights that is not there."""
    if config.model:
        check_model(config.model)
    if config.generator:
        check_model_file(config.generator)
    if config.backbone:
        check_model_file(config.backbone, "backbone weights")
    if config.moco_weights:
        check_model_file(config.moco_weights, "MoCo weights")
    check_identity(config.identity_network)


def enough_images(config: TrainConfig) -> Iterator[Shard]:
    """The shards of the input; no more of them are listed than it takes to know that they do.

    Raises `InputError` where they hold fewer images than `--held-out` and a batch take.
    """
    options = config.read_options
    shards = list_shards(config.input, files_per_shard=config.files_per_shard, options=options)
    needed, found = config.held_out + config.batch, 0
    taken: list[Shard] = []
    for shard in shards:
        taken.append(shard)
        if not _is_counted_fast(shard):
            return itertools.chain(taken, shards)
        found += count_samples(shard, min(config.limit or needed, needed - found), options)
        if found >= needed:
            return itertools.chain(taken, shards)
    rest = max(0, found - config.held_out)
    raise InputError(
        f"{found} images, of which {config.held_out} are held out for validation: the other {rest} "
        f"do not fill a batch of {config.batch}; lower --held-out or --batch, or give more images"
    )


def _is_counted_fast(shard: Shard) -> bool:
    if shard.kind != "tar":
        return True
    plain = is_local(shard.uri) and shard.uri.lower().endswith(".tar")
    return plain or shard.size <= _READ_TO_COUNT
