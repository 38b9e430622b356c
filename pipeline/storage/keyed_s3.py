"""S3 in which a key is a key. Imported with the first bucket, as s3fs takes 0.3 s."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem

from pipeline.storage.retries import count_if_failed


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

    async def set_session(self, refresh: bool = False, **options: Any) -> Any:
        """Return the client, whose answers that are asked for again are counted."""
        client = await super().set_session(refresh, **options)
        # By its name it is registered once.
        client.meta.events.register("needs-retry.s3", count_if_failed, unique_id="restyle-retries")
        return client
