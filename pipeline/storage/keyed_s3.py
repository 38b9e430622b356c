"""S3 in which a key is a key. Imported with the first bucket, as s3fs takes 0.3 s."""

from __future__ import annotations

from s3fs import S3FileSystem


class KeyedS3(S3FileSystem):  # type: ignore[misc]
    """s3fs, to which `v?versionId=3.tar` is the object `v`: read as another, written over it."""

    @staticmethod
    def _get_kwargs_from_urls(urlpath: str) -> dict[str, object]:
        """No settings: of a version s3fs makes one."""
        del urlpath
        return {}

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket, key, and no version."""
        before, mark, after = path.partition("?versionId=")
        bucket, key, _ = super().split_path(before)
        return bucket, key + mark + after, None
