"""S3 as this package reads and writes it. Imported with the first bucket, as s3fs takes 0.3 s."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pipeline.storage.credentials import error_code, is_bare_refusal, is_expired
from pipeline.storage.retries import count_if_failed

# How often a session is made anew for credentials that expired: each leaves a connection pool.
RENEW_EVERY_S = 60.0


class ExplainedS3(S3FileSystem):  # type: ignore[misc]
    """s3fs that says why S3 refuses a look-up, and takes up credentials that were renewed.

    The answer to a HEAD has no body, and so no reason: one that is refused is repeated as a GET of
    one byte or name, whose error is raised in its place. Where credentials have expired they are
    looked for again, in the environment and in the files, and the request is repeated once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._renewing = asyncio.Lock()
        self._renewed = -RENEW_EVERY_S

    async def set_session(self, refresh: bool = False, **options: Any) -> Any:
        """Return the client, whose requests that are repeated are counted."""
        client = await super().set_session(refresh, **options)
        # By its name it is registered once.
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
        """Make a new session in place of `client`; return whether there is one."""
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
            reason, page = await self._asked_by_get(kwargs)
            if reason:
                raise reason from reason.__cause__
            if page is None:
                raise
            return page  # HeadBucket knows no payer: a bucket that can be listed is there

    async def _asked_by_get(self, asked: dict[str, Any]) -> tuple[OSError | None, Any]:
        """S3's error to a GET of what a HEAD `asked` for, if it says more; a page of a bucket."""
        names = {name: asked[name] for name in ("Bucket", "Key", "VersionId") if name in asked}
        try:
            if "Key" not in asked:
                return None, await super()._call_s3("list_objects_v2", **names, MaxKeys=1)
            answer = await super()._call_s3("get_object", **names, Range="bytes=0-0")
            answer["Body"].close()
        except FileNotFoundError:
            pass
        except OSError as error:
            told = error_code(error) not in (
                "",
                "InvalidRange",
            )  # an empty object has no first byte
            if told and not is_bare_refusal(error):
                return error, None
        return None, None


class KeyedS3(ExplainedS3):
    """S3 in which a key is a key: `v?versionId=3.tar` is no version of an object `v`."""

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
