"""Check a training request before Ray and PyTorch are imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipeline.engine.address import check_address
from pipeline.engine.preflight import access_errors_as_config_errors
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

# A compressed archive, or one in a bucket, must be read to be counted: only small ones are.
_READ_TO_COUNT = 16 << 20  # bytes


def check_training(config: TrainConfig) -> Iterator[Shard]:
    """Check all that a training request names; return the shards of its input.

    Raises a `RequestError` for what is missing, and for too few images, as far as a quick count
    shows: images without a face are known only after the crops are cut.
    """
    inputs = [config.input, *([config.target] if config.target else [])]
    with access_errors_as_config_errors(config.output, *inputs):
        check_address()
        for uri in inputs:
            check_apart(uri, config.output)
        check_output(config.output, TRAINING_OUTPUT)
        check_settings(config)
        _check_weights(config)
        if config.target:
            check_image_count(config.model_copy(update={"input": config.target}))
        return check_image_count(config)


def _check_weights(config: TrainConfig) -> None:
    """Raise `ModelError` for a missing model or file of weights."""
    if config.model:
        check_model(config.model)
    if config.generator:
        check_model_file(config.generator)
    if config.backbone:
        check_model_file(config.backbone, "backbone weights")
    if config.moco_weights:
        check_model_file(config.moco_weights, "MoCo weights")
    check_identity(config.identity_network)


def check_image_count(config: TrainConfig) -> Iterator[Shard]:
    """Check that the input holds enough images; return its shards. Lists no more than needed.

    Raises `InputError` if it holds fewer images than `--held-out` plus one batch.
    """
    options = config.read_options
    shards = list_shards(config.input, files_per_shard=config.files_per_shard, options=options)
    needed, count = config.held_out + config.batch, 0
    taken: list[Shard] = []
    for shard in shards:
        taken.append(shard)
        if not _is_counted_fast(shard):
            return itertools.chain(taken, shards)
        count += count_samples(shard, min(config.limit or needed, needed - count), options)
        if count >= needed:
            return itertools.chain(taken, shards)
    rest = max(0, count - config.held_out)
    raise InputError(
        f"{count} images, of which {config.held_out} are held out for validation: the other {rest} "
        f"do not fill a batch of {config.batch}; lower --held-out or --batch, or give more images"
    )


def _is_counted_fast(shard: Shard) -> bool:
    if shard.kind != "tar":
        return True
    plain = is_local(shard.uri) and shard.uri.lower().endswith(".tar")
    return plain or shard.size <= _READ_TO_COUNT
