"""`ray job submit` against a real head: what a user of a cluster sees."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from pipeline.config import load_config
from pipeline.engine.prometheus import (
    BUSY,
    COUNTERS,
    NAMES,
    QUEUED,
    STAGE_SECONDS,
    WORKERS,
)
from pipeline.table import open_table
from tests.jobs.conftest import REASONS, SETTINGS, Undisturbed
from tests.jobs.ray_head import ROOT, Head, Submitted, running_head
from tests.jobs.running import file_bytes
from tests.storage.test_web import Server, served

pytestmark = pytest.mark.timeout(1800)
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a head that requires a token, with the minimum of CPUs for a job."""
    with running_head(TOKEN, cpus=1) as running:
        yield running


@pytest.fixture
def command(undisturbed: Undisturbed, tmp_path: Path) -> tuple[object, ...]:
    """Return the command of the undisturbed run, into a table of this test."""
    config = ("--input", undisturbed.folder / "photos", "--model", undisturbed.folder / "model")
    output = ("--output", tmp_path / "table", "--steps", 5, "--log-format", "json")
    return ("python", "jobs/invert_dataset.py", *config, *output, *SETTINGS)


def run_records(table: Path) -> list[dict[str, object]]:
    paths = sorted((table / "_runs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]


def last_object(text: str) -> dict[str, object]:
    """Return the last JSON line of a job's stdout; the client prints more after it."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    result: dict[str, object] = json.loads(lines[-1])
    return result


def scraped(head: Head, expected: set[str]) -> str:
    """Return the metrics once all `expected` ones are exported."""
    deadline = time.monotonic() + 120
    while True:
        text = head.scrape()
        missing = {name for name in expected if f"\nray_{name}" not in text}
        if not missing:
            return text
        assert time.monotonic() < deadline, f"no {missing} among the metrics"
        time.sleep(0.5)


def value_of(text: str, name: str, label: str = "") -> float:
    lines = (line for line in text.splitlines() if line.startswith(f"ray_{name}{{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if label in line)


def test_a_job_streams_its_log_and_last_line(
    head: Head, command: tuple[object, ...], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    job = head.submit(*command)
    planned = json.loads(job.wait_for('"event": "planned"'))
    assert planned["shards"] == 2
    job.wait_for('"event": "part_done"')
    run = job.ended()
    assert run.code == 0, run.out
    line = last_object(run.out)
    assert (line["exit_code"], line["samples"], line["errors"]) == (0, 12, [])
    ended = json.loads(next(text for text in job.lines if '"event": "run_ended"' in text))
    assert ended["rejects_by_reason"] == REASONS
    (record,) = run_records(tmp_path / "table")
    assert (record["exit_code"], record["samples"]) == (0, 12)
    assert str(record["job"]).startswith("test-")
    assert "ray" in record["versions"]  # type: ignore[operator]
    ours, theirs = (
        file_bytes(table, "latents", "rejects") for table in (tmp_path / "table", undisturbed.table)
    )
    assert ours == theirs


@contextmanager
def served_one_by_one(photos: Path, names: Iterable[str]) -> Iterator[tuple[str, Semaphore]]:
    """Serve a list of the images and of many more, each of which comes when it is released.

    As many as the images are released: whichever shard is read first is read whole.
    """
    first, *others = names
    released = Semaphore(1 + len(others))

    def get(request: Server) -> None:
        if "more" in request.path:
            released.acquire()
        Server.do_GET(request)

    more = [f"more-{number:03d}.jpg" for number in range(240)]
    for name in more:
        (photos / name).hardlink_to(photos / first)
    (photos / "list.txt").write_text("\n".join([first, *others, *more]))
    with served(photos, do_GET=get) as server:
        try:
            yield f"{server}/list.txt", released
        finally:
            released.release(10 * len(more))


def test_a_running_job_exposes_its_log_and_metrics(
    head: Head, command: tuple[object, ...], dataset: dict[str, bytes], photos: Path, tmp_path: Path
) -> None:
    """The job waits for images, and is stopped when all metrics are exported, after 20 s."""
    www = shutil.copytree(photos, tmp_path / "www")
    with served_one_by_one(www, dataset) as (many, released):
        # A reader fetches the files of a shard side by side.
        more = ("--input", many, "--files-per-shard", len(dataset), "--inverters", 1)
        job = head.submit(*command, *more, job="busy")
        watch_metrics(head, job, released)
        head.stop("busy")
        job.ended()


def watch_metrics(head: Head, job: Submitted, released: Semaphore) -> None:
    job.wait_for('"event": "part_done"')
    assert job.process.poll() is None, "the log comes while the job runs"
    # Some are gone with the job: one of a few seconds may never show them.
    at_once = {*COUNTERS, STAGE_SECONDS, QUEUED, WORKERS}
    at_once -= {"restyle_failures_total", "restyle_shards_total"}
    assert value_of(scraped(head, at_once), "restyle_parts_total") > 0
    while not value_of(text := head.scrape(), BUSY):
        assert job.process.poll() is None, f"no {BUSY} while the job ran"
        released.release(3)
        time.sleep(1)
    shares = re.findall(rf"^ray_{BUSY}{{.*}} (\S+)$", text, re.M)
    assert all(0 <= float(share) <= 1 for share in shares)
    config = yaml.safe_load((ROOT / "cluster" / "prometheus.yml").read_text())
    (source,) = config["scrape_configs"][0]["http_sd_configs"]
    answer = head.get(source["url"].removeprefix("http://localhost:8265"))
    targets = [target for group in json.loads(answer) for target in group["targets"]]
    assert head.metrics in {int(target.rsplit(":", 1)[1]) for target in targets}


def test_without_the_token_nothing_is_submitted(head: Head, command: tuple[object, ...]) -> None:
    run = head.submit(*command, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="").ended()
    assert run.code != 0
    assert "401" in run.out or "nauthorized" in run.out


@pytest.mark.slow
def test_the_next_job_finishes_a_stopped_one(
    head: Head, command: tuple[object, ...], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    job = head.submit(*command, job="stopped")
    # Not by its log, which comes a second late: the other parts may be through by then.
    while not list(table.glob("latents/*.parquet")):
        assert job.process.poll() is None, "no part while the job ran"
        time.sleep(0.02)
    head.stop("stopped")
    job.ended()
    (record,) = run_records(table)
    # Null where three seconds were not enough for its last words.
    assert record["exit_code"] in (1, None)
    done = len(list((table / "latents").glob("*.parquet")))
    assert 0 < done < 12, "stopped in the middle"
    again = head.submit(*command).ended()
    assert again.code == 0, again.out
    line = last_object(again.out)
    assert 0 < int(str(line["skipped_parts"])) < 12
    assert open_table(str(table)).verify()["samples"] == 12
    assert file_bytes(table, "latents") == file_bytes(undisturbed.table, "latents")
    assert run_records(table)[-1]["exit_code"] == 0


@pytest.mark.slow
def test_the_last_line_has_the_real_exit_code(
    head: Head, command: tuple[object, ...], undisturbed: Undisturbed
) -> None:
    before = len(run_records(undisturbed.table))
    run = head.submit(*command, "--output", undisturbed.table, "--steps", 3).ended()
    assert run.code == 1, "Ray turns 2 into 1"
    assert last_object(run.out)["exit_code"] == 2
    assert "--steps: 5 in the table, 3 asked for" in run.out
    assert len(run_records(undisturbed.table)) == before, "another run's table is left alone"


@pytest.mark.slow
def test_where_authentication_is_off_no_token_is_needed(undisturbed: Undisturbed) -> None:
    with running_head({"RAY_AUTH_MODE": "disabled"}) as head:
        where = "import pipeline; print(pipeline.__file__)"
        shell = f"python -c '{where}' && python jobs/status.py {undisturbed.table} --json"
        run = head.submit("sh", "-c", shell).ended()
        assert run.code == 0, run.out
        assert last_object(run.out)["shards_committed"] == 2
        assert "/runtime_resources/working_dir_files/" in run.out, "the code came with the job"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return what `--working-dir .` sends to the cluster."""
    path = tmp_path_factory.mktemp("package") / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(ROOT), path, include_gitignore=True, excludes=excludes)
    return zipfile.ZipFile(path)


def test_a_submitted_working_directory_is_small_but_sufficient(package: zipfile.ZipFile) -> None:
    names = set(package.namelist())
    assert Path(str(package.filename)).stat().st_size < 50e6, "Ray's limit is 100 MiB"
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert not folders & {".git", ".venv", "build", "demo-output", "tests"}
    needed = {
        str(path.relative_to(ROOT))
        for folder in ("jobs", "pipeline")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed <= names


def test_data_beside_the_code_do_not_travel(tmp_path: Path) -> None:
    data = [
        "restyle_psp_ffhq_encode.pt",
        "models/mine.pt",
        "photos/a.JPG",
        "photos/a.jpg",
        "shards/00000.tar.gz",
        "00000.tar",
        "dataset.zip",
        "latents.npy",
        "out/latents/00000-00000.parquet",
        "out/_shards/00000.json",
    ]
    code = ["jobs/job.py", "pipeline/models/bundles/demo/weights.safetensors", "mine.yaml"]
    folder = tmp_path / "clone"
    for name in (*data, *code):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    path = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(folder), path, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(path) as package:
        sent = {name for name in package.namelist() if not name.endswith("/")}
    assert sent - {".rayignore"} == set(code)


def test_the_guides_config_travels_with_the_job(package: zipfile.ZipFile, tmp_path: Path) -> None:
    guide = (ROOT / "cluster" / "README.md").read_text()
    (config,) = set(re.findall(r"--config (\S+\.yaml)", guide))
    assert [name for name in package.namelist() if name.startswith("cluster/")] == [config]
    assert load_config(package.extract(config, tmp_path), {}).device == "cuda"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    text = (ROOT / "cluster" / "grafana_dashboard.json").read_text()
    board = json.loads(text)
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queried = {name for name in NAMES if any(f"ray_{name}" in query for query in queries)}
    assert queried == set(NAMES), "each metric is on the board"
    for query in queries:
        assert any(f"ray_{name}" in query for name in NAMES), query
