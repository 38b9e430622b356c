"""What S3 is asked past s3fs's own reads, which take names for patterns and look each one up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from fsspec.asyn import sync

_MOST_TRIED = 8  # objects beside one that is denied


class Fetched(NamedTuple):
    """An object's bytes, and the state that they are of: its `ETag`, for `object_info`."""

    content: bytes
    details: dict[str, Any]


def is_bucket(fs: Any) -> bool:
    """Whether `fs` is S3."""
    return "s3" in fs.protocol


def bucket_and_prefix(fs: Any, folder: str) -> tuple[str, str]:
    """The bucket of a folder's path, and what the keys of the objects in the folder begin with."""
    bucket, key, _ = fs.split_path(folder)
    return bucket, f"{key}/" if key else ""


def listing_pages(fs: Any, bucket: str, start: str, **more: str) -> Iterator[dict[str, Any]]:
    """The answers, a thousand objects each, of a listing of the keys that begin with `start`."""
    request = {"Bucket": bucket, "Prefix": start, **more, **fs.req_kw}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        yield page
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def get_objects(fs: Any, folder: str, names: Sequence[str]) -> list[Fetched | BaseException]:
    """The objects `names` of `folder`, fetched at the same time by one request each.

    In the place of one that cannot be read stands why.
    """
    bucket, prefix = bucket_and_prefix(fs, folder)

    async def all_of_them() -> list[Fetched | BaseException]:
        requests = (_get(fs, bucket, prefix + name) for name in names)
        return await asyncio.gather(*requests, return_exceptions=True)

    found: list[Fetched | BaseException] = sync(fs.loop, all_of_them)
    return found


def get_head(fs: Any, path: str, length: int) -> bytes:
    """The first `length` bytes of an object; none of an empty one."""
    bucket, key, _ = fs.split_path(path)
    found: Fetched = sync(fs.loop, _get, fs, bucket, key, Range=f"bytes=0-{length - 1}")
    return found.content


def reads_beside(fs: Any, path: str) -> bool:
    """Return whether the bucket gives some other object of the folder that `path` is in.

    The first few that it lists are tried, a byte each. Where all are denied, so is the folder.
    """
    bucket, key, _ = fs.split_path(path)
    folder = key.rpartition("/")[0]
    page = next(listing_pages(fs, bucket, f"{folder}/" if folder else "", Delimiter="/"))
    others = (item["Key"] for item in page.get("Contents", ()) if item["Key"] != key)
    for other in itertools.islice(others, _MOST_TRIED):
        with suppress(PermissionError):
            sync(fs.loop, _get, fs, bucket, other, Range="bytes=0-0")
            return True
    return False


async def _get(fs: Any, bucket: str, key: str, **more: str) -> Fetched:
    """One object; one whose answer is cut is asked for again, as `_call_s3` does if refused."""
    from s3fs.core import S3_RETRYABLE_ERRORS  # behind `fs`, so loaded; its import takes 0.3 s

    tried = 1
    while True:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **more)
        try:
            async with answer["Body"] as body:
                content = bytes(await body.read())
            return Fetched(content, {"size": len(content), "ETag": answer.get("ETag")})
        except S3_RETRYABLE_ERRORS:
            if tried >= fs.retries:
                raise
            await asyncio.sleep(0.1 * 1.7**tried)
            tried += 1
