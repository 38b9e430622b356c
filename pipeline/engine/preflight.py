"""What is wrong with a request and shows at once: told before Ray and PyTorch are imported.

Nothing here is done twice: the listing of the input that is begun here is gone on with.
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
from pipeline.table import TABLE_OUTPUT, check_kept, open_initial_table


def check_request(config: JobConfig) -> ShardListing:
    """The shards of the input, as `open_input`, when all that a request names is there.

    Raises a `RequestError` for an output that cannot be one, a model, table or input that is not
    there, an input that holds nothing to read, and for credentials that open none of it.
    """
    with access_refused(config.output, config.input, *([config.target] if config.target else [])):
        check_address()
        check_kept(config.kept_names)
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
        return open_input(config)


def open_input(config: JobConfig) -> ShardListing:
    """The shards of the input, of which the first is listed: it is there, and holds images.

    Raises `InputError` where it does not, and as `list_shards`, `check_columns` and `kept_types`
    do.
    """
    shards = list_shards(
        config.input, files_per_shard=config.files_per_shard, options=config.read_options
    )
    first = shards.first()
    check_columns(first, config.read_options)
    shards.kept = kept_types(first, config.kept_names)
    return shards


@contextmanager
def access_refused(*uris: str) -> Iterator[None]:
    """Turn credentials that do not open `uris` into what they are before any work: a wrong request.

    Raises `ConfigError` for an `AccessError`, with what is wrong with S3's credentials where that
    is the reason: the request that failed may not have said it.
    """
    try:
        yield
    except StorageError as error:
        try:
            for uri in uris:
                check_credentials(canonical_uri(uri))
        except AccessError as known:
            raise ConfigError(str(known)) from error
        if isinstance(error, AccessError):
            raise ConfigError(str(error)) from error
        raise
