"""The accounts of the runs that made a table, `_runs/*.json`: the only place that knows time.

Seconds stand in no row, since a clock would give a repeated part other bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import TableError
from pipeline.storage import LeftOut, Store
from pipeline.table.spec import read_json

_FOLDER = "_runs/"
_THREADS = 8
_ACCOUNTS = 10  # that are looked into for a listing
_STAGES = ("read", "align", "invert", "write")
_RUNS = pa.schema(
    [
        ("run", pa.string()),  # the file's name
        ("started", pa.string()),  # ISO 8601, UTC
        ("exit_code", pa.int64()),
        *((name, pa.int64()) for name in ("samples", "faces", "rejects", "parts")),
        ("skipped_parts", pa.int64()),
        ("icc_ignored", pa.int64()),  # images whose colour profile is damaged or not for them
        ("identity_missed", pa.int64()),  # faces in which the identity network found none
        ("seconds", pa.float64()),  # from start to end
        ("images_per_second", pa.float64()),
        ("inversion_seconds", pa.float64()),  # of the method alone, summed over workers
        *((f"{stage}_seconds", pa.float64()) for stage in _STAGES),  # summed over workers
        ("errors", pa.int64()),
    ]
)


_NUMBERS = tuple(name for name in _RUNS.names if name not in ("run", "started", "errors"))
_OF_TYPE = {"started": str, "updated": str, "errors": list, "stage_seconds": dict, "found": dict}
_FOUND = ("shards", "done_shards", "bytes", "done_bytes")


def read_account(store: Store, name: str) -> dict[str, Any]:
    """What one run did; what it does not say is not there.

    Raises `TableError` if what it says is none of its kind, whoever wrote it.
    """
    account = read_json(store, name)
    given = {fact: value for fact, value in account.items() if value is not None}
    try:
        for fact, kind in _OF_TYPE.items():
            _check(fact, given.get(fact, kind()), kind)
        for fact in _NUMBERS:
            _check(fact, given.get(fact, 0), (int, float))
        if given.get("updated"):
            datetime.fromisoformat(given["updated"])
        for stage, seconds in given.get("stage_seconds", {}).items():
            _check(stage, seconds, (int, float))
        for fact in _FOUND if given.get("found") else ():
            _check(fact, given["found"].get(fact), int)
    except (TypeError, ValueError) as error:
        raise TableError(f"'{store.uri(name)}' is not the account of a run: {error}") from error
    return account


def listed_left_out(store: Store) -> LeftOut:
    """What the latest run that has listed its input to the end passed over as it did."""
    for name in list(reversed(store.names(_FOLDER)))[:_ACCOUNTS]:
        with suppress(TableError, TypeError):
            found = read_account(store, name).get("found") or {}
            if found.get("complete"):
                return LeftOut.from_dict(found.get("left_out", {}))
    return LeftOut()


def _check(fact: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"'{fact}' is a {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"'{fact}' is larger than any integer of a table")


def read_runs(store: Store) -> list[dict[str, Any]]:
    """The accounts by start; each with its file's name as `run`."""
    names = [name for name in store.names(_FOLDER) if name.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        accounts = pool.map(lambda name: read_account(store, name), names)
        return [
            {**account, "run": name.removeprefix(_FOLDER)}
            for name, account in zip(names, accounts, strict=True)
        ]


def runs_table(runs: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The accounts as rows; what an account does not say is null."""
    return pa.Table.from_pylist([_row(run) for run in runs], schema=_RUNS)


def seconds_per_face(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the method, without metrics, for each face, over all runs.

    Failed runs count with what they did. None where no run says how long its inversions took.
    """
    timed = [run for run in runs if run.get("inversion_seconds") and run.get("faces")]
    faces = sum(int(run["faces"]) for run in timed)
    return sum(float(run["inversion_seconds"]) for run in timed) / faces if faces else None


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    stages = run.get("stage_seconds") or {}
    row = {name: run.get(name) for name in _RUNS.names}
    row |= {f"{stage}_seconds": stages.get(stage) for stage in _STAGES}
    return row | {"errors": len(run.get("errors") or ())}
