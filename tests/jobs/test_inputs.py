"""The same images out of archives in a bucket, with the table in the bucket too."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import S3_PROFILES, Store
from pipeline.table import Table, open_table
from tests.conftest import S3Server, make_bucket
from tests.faults.proxy import running_proxy
from tests.jobs.conftest import FILES_PER_SHARD, SETTINGS, WORKERS, Undisturbed
from tests.jobs.running import Ended, run_job

pytestmark = pytest.mark.timeout(1800)


def tar_of(images: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


@dataclass(frozen=True)
class OnS3:
    """A first run over two archives, and one after the second archive changed, with a third."""

    server: S3Server
    first: Ended
    codes: dict[str, np.ndarray]
    counts: dict[str, int]
    before: dict[str, bytes]
    second: Ended
    after: dict[str, bytes]
    read_requests: int  # that came to the endpoint of the input


def objects(store: Store) -> dict[str, bytes]:
    return {name: store.get(name) for name in store.names("")}


def codes_by_content(table: Table) -> dict[str, np.ndarray]:
    """Codes by the hash of the image that they are of, whatever it is called."""
    rows = table.sql("SELECT image_id, source_sha256 FROM latents ORDER BY image_id")
    codes = table.w_plus(list(rows["image_id"]))
    return dict(zip(rows["source_sha256"], codes, strict=True))


@pytest.fixture(scope="module")
def on_s3(
    s3_server: S3Server,
    dataset: dict[str, bytes],
    tiny_bundle: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OnS3]:
    folder = tmp_path_factory.mktemp("s3-job")
    images = iter(dataset.items())
    first, second = (dict(islice(images, FILES_PER_SHARD)) for _ in range(2))

    # No credentials in the environment: the input and the output have their own, which open no
    # more, and their own endpoints.
    config = folder / "aws-config"
    environment = {
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def run(photos: str, table: str) -> Ended:
        where = ("--input", photos, "--output", table, "--model", tiny_bundle)
        profiles = {S3_PROFILES: f"{photos}=reader {table}=writer"}
        return run_job(folder, *where, *SETTINGS, *WORKERS, **environment, **profiles)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as through:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        photos = Store(f"{make_bucket(s3_server, 'portraits')}/photos")
        table = Store(f"{make_bucket(s3_server, 'results-inverted')}/table")
        proxy = through.enter_context(running_proxy(s3_server.address))
        config.write_text(
            s3_server.profile("reader", endpoint_url=proxy.url)
            + s3_server.profile("writer", endpoint_url=s3_server.endpoint)
        )
        photos.put("a.tar", tar_of(first))
        photos.put("b.tar", tar_of(second))
        one = run(photos.root, table.root)
        opened = open_table(table.root)
        codes, counts, before = codes_by_content(opened), opened.verify(), objects(table)
        photos.put("b.tar", tar_of(dict(islice(second.items(), 1, None))))
        photos.put("c.tar", tar_of(second)[:-60_000])
        two = run(photos.root, table.root)
        after = objects(table)
        yield OnS3(s3_server, one, codes, counts, before, two, after, proxy.requests)


def test_archives_in_a_bucket_give_the_codes_of_a_folder_on_a_disk(
    on_s3: OnS3, undisturbed: Undisturbed
) -> None:
    assert on_s3.first.code == 0, on_s3.first.err
    theirs = codes_by_content(open_table(str(undisturbed.table)))
    assert len(theirs) == 7
    assert on_s3.codes.keys() == theirs.keys()
    assert [key for key in theirs if theirs[key].tobytes() != on_s3.codes[key].tobytes()] == []


def test_codes_belong_to_their_images(on_s3: OnS3, dataset: dict[str, bytes]) -> None:
    for name in ("portraits/0001.jpg", "unusual/two-faces.jpg"):
        assert hashlib.sha256(dataset[name]).hexdigest() in on_s3.codes


def test_a_table_in_a_bucket_keeps_its_promises(on_s3: OnS3) -> None:
    assert (on_s3.counts["samples"], on_s3.counts["shards"], on_s3.counts["parts"]) == (12, 2, 12)
    assert on_s3.first.line["table"] == "s3://results-inverted/table"


def test_no_secret_is_in_the_bucket_or_the_output(on_s3: OnS3) -> None:
    said = {"stdout": on_s3.first.out.encode(), "stderr": on_s3.first.err.encode()}
    secrets = [secret.encode() for secret in on_s3.server.secrets.values()]
    found = on_s3.before | on_s3.after | said
    leaks = [name for name, content in found.items() if any(one in content for one in secrets)]
    assert leaks == []


def test_the_input_has_its_own_credentials_and_endpoint(on_s3: OnS3) -> None:
    assert on_s3.first.code == 0, on_s3.first.err
    assert on_s3.read_requests > 0
    description = on_s3.before["_table.json"]
    assert b"reader" not in description
    assert b"writer" not in description


def shard_files(found: dict[str, bytes], shard: str) -> dict[str, bytes]:
    names = [name for name in found if Path(name).name.startswith((f"{shard}-", f"{shard}."))]
    return {name: found[name] for name in names}


def test_a_shard_that_did_not_change_is_not_touched(on_s3: OnS3) -> None:
    unchanged = shard_files(on_s3.before, "a")
    assert len(unchanged) == 13  # six parts of two files, and the manifest
    assert shard_files(on_s3.after, "a") == unchanged
    assert on_s3.second.line["skipped_parts"] == 6


def test_a_changed_shard_is_redone_whole(on_s3: OnS3) -> None:
    before, after = shard_files(on_s3.before, "b"), shard_files(on_s3.after, "b")
    assert before.keys() - after.keys() == {"latents/b-00005.parquet", "rejects/b-00005.parquet"}
    assert [name for name in after if after[name] == before[name]] == []


def test_a_damaged_shard_fails_by_its_name_and_leaves_the_others_committed(on_s3: OnS3) -> None:
    run = on_s3.second
    assert run.code == 1
    (error,) = run.line["errors"]
    assert "s3://portraits/photos/c.tar" in error
    assert "run the same command again" in run.err.splitlines()[-1]
    assert "Traceback" not in run.err
    committed = {name for name in on_s3.after if name.startswith("_shards/")}
    assert committed == {"_shards/a.json", "_shards/b.json"}
    assert shard_files(on_s3.after, "c"), "the parts before the damage are kept for the next run"
