from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from pipeline.config import JobConfig
from pipeline.engine import sharing
from pipeline.engine.cluster import running_ray
from pipeline.engine.sharing import CheckSharing, SharedPaths, local_paths, sharing_checked
from pipeline.errors import ConfigError

pytestmark = [
    pytest.mark.timeout(600),
    # Ray Data sets its own deprecated settings, and warns itself of it.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    # Ray leaves the log files of its own processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"input": "s3://b/in", "output": "s3://b/out"} | settings)


def test_only_what_lies_on_a_disk_must_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "model", "first"):
        (tmp_path / name).mkdir()
    assert local_paths(config(identity="none")) == {}
    assert local_paths(config(input="s3://b/in", init="s3://b/first", model="s3://b/m")) == {}
    assert local_paths(config(input="photos", model="model", init=str(tmp_path / "first"))) == {
        str(tmp_path / "photos"): "input",
        "model": "model",
        str(tmp_path / "first"): "init",
    }


def test_outside_a_cluster_nothing_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "in_cluster", lambda: False)
    with sharing_checked(config(output=str(tmp_path / "table"))):
        assert not (tmp_path / "table").exists()


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    with running_ray():
        yield


def heard(paths: SharedPaths, seconds: float = 120.0) -> None:
    """Look until every node that is there has answered."""
    deadline = time.monotonic() + seconds
    paths.look(lambda: float("inf"))
    while paths._asked:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        paths._looked = 0.0
        paths.look()


@pytest.mark.usefixtures("one_node")
def test_another_node_is_asked_for_each_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node of this test stands for another one: it is not the one that is said to be own."""
    monkeypatch.setattr(sharing, "PATIENCE_S", 1)
    there, absent = str(tmp_path), str(tmp_path / "elsewhere")
    heard(SharedPaths({there: "output"}, own="another"))
    with pytest.raises(ConfigError, match=r"the output is a local path, .* has no '.*/elsewhere'"):
        heard(SharedPaths({there: "input", absent: "output"}, own="another"))
    alone = ray.get_runtime_context().get_node_id()
    heard(SharedPaths({absent: "output"}, own=alone))


@pytest.mark.usefixtures("one_node")
def test_other_nodes_must_see_a_hidden_file_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "in_cluster", lambda: True)
    table = tmp_path / "table"
    with sharing_checked(config(output=str(table))):
        (marker,) = table.iterdir()
        assert CheckSharing.paths is not None
        assert CheckSharing.paths.paths == {str(marker): "output"}
        assert CheckSharing in DataContext.get_current().custom_execution_callback_classes
        CheckSharing().on_execution_step(None)
    assert list(table.iterdir()) == []
    assert CheckSharing.paths is None
