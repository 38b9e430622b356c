"""Read the images of an input from any storage, and write objects atomically.

An input passes through these steps, each in its own module:

1. List: `input_files.open_input` resolves a folder, file, list or pattern to files, which
   `listing.walk` lists on a disk, in a bucket or elsewhere (`uris.filesystem`).
2. Recognise: `recognition.recognise` picks the images and shard files by name or by first bytes
   (`file_types`); `left_out.LeftOut` counts the rest.
3. Shards: `shards.list_shards` yields a `Shard` for each tar, zip and Parquet file, and for each
   slice of 1,024 single images.
4. Read: `readers.dispatch.read_samples` streams the images of a shard, not decoded, each as a
   `sample.Sample` with its key; an image that cannot be read is a sample with a `reject` reason.
5. Store: `store.Store` writes the results; `output_check.check_output` checks the folder first.

Every error of a storage is a `StorageError` with a message of one line (`uris.storage_errors`).
Credentials come from the environment (`credentials`), never through this package.
"""

from pipeline.storage.credentials import CREDENTIALS_EXPIRED, S3_PROFILES
from pipeline.storage.input_files import check_apart
from pipeline.storage.kept_columns import arrow_type, kept_array
from pipeline.storage.left_out import LeftOut
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.output_check import (
    OutputKind,
    check_contents,
    check_output,
    check_outside,
)
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
    slice_id,
    slice_number,
)
from pipeline.storage.store import Store, file_place
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
    "check_columns",
    "check_contents",
    "check_credentials",
    "check_output",
    "check_outside",
    "count_samples",
    "file_place",
    "is_local",
    "kept_array",
    "kept_types",
    "list_shards",
    "literal_folder",
    "one_line",
    "read_samples",
    "slice_id",
    "slice_number",
    "spread_samples",
]
