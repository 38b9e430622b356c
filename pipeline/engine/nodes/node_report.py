"""Report of one node before it works for a job: its code, packages, paths, storage."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pipeline
from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table import SPEC_NAME

PACKAGES = ("restyle-pipeline", "ray", "torch", "numpy", "pyarrow", "pillow", "dlib-bin")


class NodeReport(NamedTuple):
    """Report of a node; `storage_error` is empty if all storage answers."""

    code: str  # `code_digest`
    versions: dict[str, str]  # of Python and of the packages that compute and write
    absent: list[str]  # those of the requested paths that do not exist
    storage_error: str = ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute and write."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        # On a cluster this package may be a working directory, not an installation.
        with suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


@cache
def code_digest() -> str:
    """Return the first 16 hex digits of the SHA-256 of this package's Python files.

    It covers relative paths and contents, not the location of the package.
    """
    root = Path(pipeline.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def node_report(
    paths: Sequence[str],
    table: str,  # URI in object storage, "" if it is on a disk
    patience_s: int,  # how long to wait for a path: network disks show files late
) -> NodeReport:
    """Return the report of the node that this runs on."""
    return NodeReport(code_digest(), versions(), _absent(paths, patience_s), _probe(table))


def _absent(paths: Sequence[str], patience_s: int) -> list[str]:
    absent = list(paths)
    for wait in [0, *[1] * patience_s]:
        time.sleep(wait)
        absent = [path for path in absent if not os.path.lexists(path)]
        if not absent:
            break
    return absent


def _probe(table: str) -> str:
    """Return the error of looking up the table's description; "" without one.

    The input is not looked up: no name in it is known here, and S3 answers for a missing name as
    for one without access rights.
    """
    try:
        if table:
            Store(table).exists(SPEC_NAME)
    except PipelineError as error:
        return f"{type(error).__name__}: {error}"
    return ""
