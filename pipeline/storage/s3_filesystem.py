"""S3 file systems of this package, imported with the first bucket: s3fs takes 0.3 s."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pipeline.storage.credentials import error_code, is_bare_refusal, is_expired
from pipeline.storage.retries import count_if_failed

# Shortest time between two sessions for renewed credentials: each leaves a connection pool behind.
RENEW_EVERY_S = 60.0


class ExplainedS3(S3FileSystem):  # type: ignore[misc]
    """s3fs that explains why S3 refuses a HEAD request, and reloads renewed credentials.

    The answer to a HEAD has no body, and so no reason: a refused HEAD is repeated as a GET of one
    byte or name, whose error is raised instead. If credentials have expired, they are read again
    from the environment and the files, and the request is repeated once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._renewing = asyncio.Lock()
        self._renewed = -RENEW_EVERY_S

    async def set_session(self, refresh: bool = False, **options: Any) -> Any:
        """Return the client, with a handler that counts failed requests (`retries`)."""
        client = await super().set_session(refresh, **options)
        # The id prevents a second registration.
        client.meta.events.register("needs-retry.s3", count_if_failed, unique_id="restyle-retries")
        return client

    async def _call_s3(self, method: str, *akwarglist: dict[str, Any], **kwargs: Any) -> Any:
        client = await self.set_session()
        try:
            return await self._explained(method, *akwarglist, **kwargs)
        except OSError as error:
            if not (is_expired(error) and await self._renew(client)):
                raise
        return await self._explained(method, *akwarglist, **kwargs)

    call_s3 = sync_wrapper(_call_s3)

    async def _renew(self, client: Any) -> bool:
        """Replace the session `client` if it is old enough; return whether it was replaced."""
        async with self._renewing:
            if self._s3 is client and time.monotonic() - self._renewed >= RENEW_EVERY_S:
                self._renewed = time.monotonic()
                await self.set_session(refresh=True)
        return self._s3 is not client

    async def _explained(self, method: str, *akwarglist: dict[str, Any], **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *akwarglist, **kwargs)
        except OSError as error:
            if not (method.startswith("head_") and is_bare_refusal(error)):
                raise
            page = await self._repeat_as_get(kwargs)
            if page is None:
                raise
            return page  # HeadBucket takes no RequestPayer: a bucket that can be listed exists

    async def _repeat_as_get(self, request: dict[str, Any]) -> Any:
        """Repeat a HEAD `request` as a GET of one byte, or of one name of a bucket.

        Raises the error if it has a reason. Returns the page of a bucket that can be listed, else
        None.
        """
        names = {name: request[name] for name in ("Bucket", "Key", "VersionId") if name in request}
        try:
            if "Key" not in request:
                return await super()._call_s3("list_objects_v2", **names, MaxKeys=1)
            answer = await super()._call_s3("get_object", **names, Range="bytes=0-0")
            answer["Body"].close()
        except FileNotFoundError:
            pass
        except OSError as error:
            # An empty object has no first byte.
            has_reason = error_code(error) not in ("", "InvalidRange")
            if has_reason and not is_bare_refusal(error):
                raise
        return None


class KeyedS3(ExplainedS3):
    """S3 with literal keys: `v?versionId=3.tar` is a key, not a version of the object `v`."""

    @staticmethod
    def _get_kwargs_from_urls(urlpath: str) -> dict[str, object]:
        """Return no settings; s3fs would read one from `?versionId=`."""
        del urlpath
        return {}

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return the bucket, the key with a `?versionId=` in it, and no version."""
        before, mark, after = path.partition("?versionId=")
        bucket, key, _ = super().split_path(before)
        return bucket, key + mark + after, None
