"""Check a request before Ray and PyTorch are imported, so that a mistake is reported at once.

The listing of the input that starts here is continued by the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import JobConfig
from pipeline.engine.address import check_address
from pipeline.errors import AccessError, ConfigError, StorageError
from pipeline.metrics.names import check_identity
from pipeline.models.files import check_model
from pipeline.storage import (
    ShardListing,
    canonical_uri,
    check_apart,
    check_columns,
    check_contents,
    check_credentials,
    check_output,
    kept_types,
    list_shards,
)
from pipeline.table import TABLE_OUTPUT, open_initial_table
from pipeline.table.schema import check_kept


def check_request(config: JobConfig) -> ShardListing:
    """Check all that a request names; return the listing of its input, which has then started.

    Raises a `RequestError` for an unusable output, a missing model, table or input, an input
    without images, fields that it lacks, and for credentials without access.
    """
    with access_errors_as_config_errors(
        config.output, config.input, *([config.target] if config.target else [])
    ):
        check_address()
        check_kept(config.kept_names, identity=bool(config.keep_identity))
        check_output(config.output)
        check_apart(config.input, config.output)
        check_contents(config.output, TABLE_OUTPUT)
        for model in filter(None, (config.model, config.bootstrap)):
            check_model(model)
        if config.identity:
            check_identity(config.identity)
        if config.init:
            open_initial_table(config.init)
        if config.target:
            check_apart(config.target, config.output)
            list_shards(config.target, options=config.read_options).first()
        shards = list_shards(
            config.input, files_per_shard=config.files_per_shard, options=config.read_options
        )
        first = shards.first()  # proves that the input exists and holds images
        check_columns(first, config.read_options)
        shards.kept = kept_types(first, config.kept_names)
        return shards


@contextmanager
def access_errors_as_config_errors(*uris: str) -> Iterator[None]:
    """Turn an `AccessError` about `uris` into a `ConfigError`, as no work has started.

    The text says what is wrong with the S3 credentials, if that is the reason: the error of the
    failed request may not say so.
    """
    try:
        yield
    except StorageError as error:
        try:
            for uri in uris:
                check_credentials(canonical_uri(uri))
        except AccessError as reason:
            raise ConfigError(str(reason)) from error
        if isinstance(error, AccessError):
            raise ConfigError(str(error)) from error
        raise
