"""URIs to bytes: shards of an input, their samples, and atomic puts (fsspec, S3 through s3fs)."""

from pipeline.redaction import without_secrets
from pipeline.storage.contents import OutputKind
from pipeline.storage.counts import count_samples
from pipeline.storage.left_out import LeftOut
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.options import ReadOptions
from pipeline.storage.outputs import check_beside, check_output
from pipeline.storage.parquets import check_columns
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample
from pipeline.storage.samples import read_samples
from pipeline.storage.shards import (
    FILES_PER_SHARD,
    Shard,
    list_shards,
    shard_id_of,
    slice_id,
    slice_number,
)
from pipeline.storage.spread import spread_samples
from pipeline.storage.store import Store
from pipeline.storage.uris import canonical_uri, check_credentials, is_local, one_line

__all__ = [
    "FILES_PER_SHARD",
    "MAX_SAMPLE_BYTES",
    "LeftOut",
    "ObjectInfo",
    "OutputKind",
    "ReadOptions",
    "Sample",
    "Shard",
    "Store",
    "canonical_uri",
    "check_beside",
    "check_columns",
    "check_credentials",
    "check_output",
    "count_samples",
    "is_local",
    "list_shards",
    "one_line",
    "read_samples",
    "shard_id_of",
    "slice_id",
    "slice_number",
    "spread_samples",
    "without_secrets",
]
