from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pipeline.engine import cluster
from pipeline.engine.cluster import RaySession, shipped_environment, summarize_error
from pipeline.errors import ConfigError
from pipeline.storage import S3_PROFILES


def raising(error: Exception) -> Callable[..., None]:
    """Return a function that raises `error`, whatever its arguments."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


TRACE = 'ray::Align() (pid=7)\n  File "align.py", line 3, in work\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRACE + "OSError: the disk is full", "RuntimeError: OSError: the disk is full"),
        (TRACE + "OSError: the disk is full\r\n \t\n\n", "RuntimeError: OSError: the disk is full"),
        ("lost\u2028node", "RuntimeError: node"),
        (" \n", "RuntimeError"),
        ("", "RuntimeError"),
    ],
)
def test_a_remote_error_becomes_its_last_line(text: str, expected: str) -> None:
    assert summarize_error(RuntimeError(text)) == expected


def test_a_credential_of_several_lines_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET_KEY", "first-line-of-it\nlast-line-of-it")
    result = summarize_error(OSError("refused: first-line-of-it\nlast-line-of-it"))
    assert result == "OSError: refused: ***"


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.11.7
This process on node 10.77.0.2 was started with:
    Ray: 2.59.0
    Python: 3.12.1
"""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError(MISMATCH),
            "the cluster runs Ray 2.60.0 on Python 3.11.7, and this job Ray 2.59.0 on",
        ),
        (
            ConnectionError("RPC error: InvalidAuthToken: Authentication token is missing"),
            "the cluster requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ),
    ],
)
def test_a_clusters_refusal_is_one_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.ray, "init", raising(error))
    with pytest.raises(ConfigError) as refusal:
        cluster._join_cluster()
    assert str(refusal.value).startswith(expected)
    assert "\n" not in str(refusal.value)


def test_another_failure_to_join_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionError("nobody answers")
    monkeypatch.setattr(cluster.ray, "init", raising(error))
    with pytest.raises(ConnectionError, match="nobody answers"):
        cluster._join_cluster()


def test_a_session_raises_why_ray_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConfigError("no port is free")
    monkeypatch.setattr(cluster, "_start_local", raising(error))
    session = RaySession()
    session.close()
    assert session._folder is None, "nothing was started"
    session.start()
    folder = session._folder
    assert folder
    assert folder.exists()
    with pytest.raises(ConfigError, match="no port is free"), session:
        pass
    assert not folder.exists()


def test_profiles_are_sent_to_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    job = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.delenv(S3_PROFILES, raising=False)
    assert shipped_environment() is None
    monkeypatch.setenv(S3_PROFILES, "s3://photos=reader")
    assert shipped_environment() == {"env_vars": {S3_PROFILES: "s3://photos=reader"}}
    monkeypatch.setenv(job, json.dumps({"runtime_env": {"env_vars": {"OTHER": "1"}}}))
    assert shipped_environment() == {"env_vars": {S3_PROFILES: "s3://photos=reader"}}
    monkeypatch.setenv(job, json.dumps({"runtime_env": {"env_vars": {S3_PROFILES: "x"}}}))
    assert shipped_environment() is None
