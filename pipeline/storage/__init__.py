"""URIs to bytes: shards of an input, their samples, and atomic puts (fsspec, S3 through s3fs)."""

from pipeline.redaction import without_secrets
from pipeline.storage.credentials import CREDENTIALS_EXPIRED, S3_PROFILES
from pipeline.storage.input_files import check_apart
from pipeline.storage.kept_columns import arrow_type, kept_array
from pipeline.storage.left_out import LeftOut
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.output_check import OutputKind, check_beside, check_contents, check_output
from pipeline.storage.patterns import literal_folder
from pipeline.storage.read_options import ALL_IMAGES, ONE_IMAGE, ReadOptions
from pipeline.storage.readers.dispatch import kept_types, read_samples
from pipeline.storage.readers.parquet import check_columns
from pipeline.storage.sample import MAX_SAMPLE_BYTES, Sample
from pipeline.storage.sampling import count_samples, spread_samples
from pipeline.storage.shards import (
    FILES_PER_SHARD,
    Shard,
    ShardListing,
    list_shards,
    shard_id_of,
    slice_id,
    slice_number,
)
from pipeline.storage.store import Store
from pipeline.storage.uris import canonical_uri, check_credentials, is_local, one_line

__all__ = [
    "ALL_IMAGES",
    "CREDENTIALS_EXPIRED",
    "FILES_PER_SHARD",
    "MAX_SAMPLE_BYTES",
    "ONE_IMAGE",
    "S3_PROFILES",
    "LeftOut",
    "ObjectInfo",
    "OutputKind",
    "ReadOptions",
    "Sample",
    "Shard",
    "ShardListing",
    "Store",
    "arrow_type",
    "canonical_uri",
    "check_apart",
    "check_beside",
    "check_columns",
    "check_contents",
    "check_credentials",
    "check_output",
    "count_samples",
    "is_local",
    "kept_array",
    "kept_types",
    "list_shards",
    "literal_folder",
    "one_line",
    "read_samples",
    "shard_id_of",
    "slice_id",
    "slice_number",
    "spread_samples",
    "without_secrets",
]
