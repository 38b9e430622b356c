"""Direct S3 calls. s3fs's own `cat` treats names as glob patterns and stats each object first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from fsspec.asyn import sync

from pipeline.storage.objects import object_info

_MAX_TRIED = 8  # objects in the folder of an object that is denied


class Fetched(NamedTuple):
    """A file's bytes and etag, or why it cannot be read; no etag if the storage gives none."""

    content: bytes
    etag: str = ""
    why_not: str = ""


def is_bucket(fs: Any) -> bool:
    """Return whether `fs` is S3."""
    return "s3" in fs.protocol


def bucket_and_prefix(fs: Any, folder: str) -> tuple[str, str]:
    """Return the bucket of the path `folder`, and the prefix of the keys in that folder."""
    bucket, key, _ = fs.split_path(folder)
    return bucket, f"{key}/" if key else ""


def listing_pages(fs: Any, bucket: str, start: str, **more: str) -> Iterator[dict[str, Any]]:
    """Yield the pages, a thousand objects each, of a listing of the keys that begin with `start`.

    `more` are further arguments of ListObjectsV2, such as `Delimiter`.
    """
    request = {"Bucket": bucket, "Prefix": start, **more, **fs.req_kw}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def keeps_versions(fs: Any, path: str) -> bool | None:
    """Return whether the bucket of `path` keeps replaced objects; None if it does not say."""
    bucket, _, _ = fs.split_path(path)
    try:
        answer = fs.call_s3("get_bucket_versioning", Bucket=bucket)
    except Exception:  # noqa: BLE001 - a right that is missing, or a server without this request
        return None
    return answer.get("Status") in ("Enabled", "Suspended")


def get_objects(fs: Any, folder: str, names: Sequence[str]) -> list[Fetched | BaseException]:
    """Fetch the objects `names` of `folder` in parallel, with one request each.

    An object that cannot be read gives the exception in its place.
    """
    bucket, prefix = bucket_and_prefix(fs, folder)

    async def fetch_all() -> list[Fetched | BaseException]:
        requests = (_get(fs, bucket, prefix + name) for name in names)
        return await asyncio.gather(*requests, return_exceptions=True)

    results: list[Fetched | BaseException] = sync(fs.loop, fetch_all)
    return results


def get_head(fs: Any, path: str, length: int) -> bytes:
    """Read the first `length` bytes of an object."""
    bucket, key, _ = fs.split_path(path)
    head: Fetched = sync(fs.loop, _get, fs, bucket, key, Range=f"bytes=0-{length - 1}")
    return head.content


def can_read_siblings(fs: Any, path: str) -> bool:
    """Return whether another object in the folder of `path` can be read.

    Reads one byte of each of the first few that are listed. If all are denied, the user has no
    right to the folder.
    """
    bucket, key, _ = fs.split_path(path)
    folder = key.rpartition("/")[0]
    page = next(listing_pages(fs, bucket, f"{folder}/" if folder else "", Delimiter="/"))
    others = (item["Key"] for item in page.get("Contents", ()) if item["Key"] != key)
    for other in itertools.islice(others, _MAX_TRIED):
        with suppress(PermissionError):
            sync(fs.loop, _get, fs, bucket, other, Range="bytes=0-0")
            return True
    return False


async def _get(fs: Any, bucket: str, key: str, **more: str) -> Fetched:
    """Read one object. A truncated answer is requested again, as `_call_s3` repeats errors."""
    from s3fs.core import S3_RETRYABLE_ERRORS  # loaded with `fs`; its import takes 0.3 s

    tried = 1
    while True:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **more)
        try:
            async with answer["Body"] as body:
                content = bytes(await body.read())
            details = {"size": len(content), "ETag": answer.get("ETag")}
            return Fetched(content, object_info(details).etag)
        except S3_RETRYABLE_ERRORS:
            if tried >= fs.retries:
                raise
            await asyncio.sleep(0.1 * 1.7**tried)
            tried += 1
