"""Drop the S3 clients that this process caches, so that a changed environment takes effect."""

from __future__ import annotations

from pipeline.storage.s3_filesystem import ExplainedS3, KeyedS3


def forget_s3_sessions() -> None:
    """Drop the cached clients of stores, and of `read_file`, which has a class of its own.

    fsspec caches one client per class and arguments; the environment is not part of the key.
    """
    for kind in (KeyedS3, ExplainedS3):
        kind.clear_instance_cache()
