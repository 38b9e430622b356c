"""Planted secrets of jobs that run and fail are written nowhere.

Searched are the table in the bucket, stdout and stderr, the job's home, and the session logs of its
Ray (system, workers, runtime environments).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage import Store
from tests.conftest import S3Server, make_bucket
from tests.jobs.conftest import SETTINGS, WORKERS
from tests.jobs.running import Ended, run_job
from tests.jobs.test_inputs import tar_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

PLANTED = {
    "HF_TOKEN": "planted-token-of-the-hub-0123456789",
    "FSSPEC_GCS_TOKEN": "planted-storage-option-0123456789",
    "AZURE_STORAGE_ACCOUNT_KEY": "planted-account-key-0123456789",
    "RAY_AUTH_TOKEN": "feedfacefeedfacefeedfacefeedface",
}
IN_A_URI = "planted-in-a-uri-0123456789"


@dataclass(frozen=True)
class Searched:
    """Output of several runs, and every file that they wrote, by name."""

    runs: dict[str, Ended]
    written: dict[str, bytes]
    secrets: tuple[str, ...]

    def holding(self, secret: str) -> list[str]:
        """Return the names of files that contain a secret."""
        return [name for name, content in self.written.items() if secret.encode() in content]


def files(folder: Path, label: str) -> dict[str, bytes]:
    return {
        f"{label}/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture(scope="module")
def searched(
    s3_server: S3Server,
    sample_images: dict[str, bytes],
    tiny_bundle: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Searched:
    folder = tmp_path_factory.mktemp("secrets")
    # Ray's sockets are below it, and paths of sockets must be short.
    ray = Path(tempfile.mkdtemp(prefix="ray-secrets-"))
    environment = {**s3_server.env, **PLANTED, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(ray)}
    environment |= {"AWS_MAX_ATTEMPTS": "1"}

    def run(name: str, source: str, target: str, *more: str, **other: str) -> Ended:
        place = folder / name
        place.mkdir()
        where = ("--input", source, "--output", target, "--model", tiny_bundle, *more)
        return run_job(place, *where, *SETTINGS, *WORKERS, **{**environment, **other})

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        bucket = make_bucket(s3_server, "with-secrets")
        photos = tar_of({"1.jpg": sample_images["portraits/0001.jpg"]})
        Store(f"{bucket}/photos").put("whole.tar", photos)
        Store(f"{bucket}/photos").put("broken.tar", photos[: len(photos) // 2])
        runs = {
            "half": run("half", f"{bucket}/photos", f"{bucket}/table"),
            "no bucket": run("no-bucket", "s3://no-such-bucket/x", f"{bucket}/other"),
            "refused": run(
                *("refused", f"{bucket}/photos", f"{bucket}/other", "--dry-run"),
                AWS_SECRET_ACCESS_KEY="planted-and-wrong-0123456789",
            ),
            "down": run(
                *("down", f"{bucket}/photos", f"{bucket}/other"),
                AWS_ENDPOINT_URL="http://127.0.0.1:9",
            ),
            "in a uri": run("uri", f"s3://someone:{IN_A_URI}@bucket/x", f"{bucket}/other"),
            "signed": run("signed", f"https://host/x.tar?X-Amz-Signature={IN_A_URI}", "table"),
        }
        store = Store(bucket)
        written = {f"bucket/{name}": store.get(name) for name in store.names()}
    written |= files(folder, "job") | files(ray, "ray")
    shutil.rmtree(ray, ignore_errors=True)
    secrets = (s3_server.secret, IN_A_URI, "planted-and-wrong-0123456789", *PLANTED.values())
    return Searched(runs, written, secrets)


def test_runs_end_as_planned(searched: Searched) -> None:
    codes = {name: run.code for name, run in searched.runs.items()}
    assert codes == {"half": 1, "no bucket": 2, "refused": 1, "down": 1, "in a uri": 2, "signed": 2}
    assert "broken.tar" in searched.runs["half"].err
    assert any(name.startswith("bucket/table/latents/") for name in searched.written)
    assert any(name.startswith("bucket/table/_runs/") for name in searched.written)


def test_the_search_includes_the_logs_of_ray(searched: Searched) -> None:
    logs = [name for name in searched.written if name.startswith("ray/") and "/logs/" in name]
    assert any("raylet" in name for name in logs)
    assert any("worker" in name for name in logs)


def test_no_planted_secret_is_written(searched: Searched) -> None:
    assert {secret: searched.holding(secret) for secret in searched.secrets} == {
        secret: [] for secret in searched.secrets
    }


@pytest.mark.parametrize("name", ["no bucket", "refused", "down", "in a uri", "signed"])
def test_a_storage_failure_is_reported_in_one_line(searched: Searched, name: str) -> None:
    said = searched.runs[name].err.splitlines()
    reasons = [line for line in said if "Error: " in line or line.startswith("failed: ")]
    assert len(reasons) == 1, said
    assert "Traceback" not in searched.runs[name].err
