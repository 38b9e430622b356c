"""SQL as bad input: queries and conditions, some of which carry statements as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError, RequestError
from pipeline.interop.exporting import NamedSelection
from pipeline.storage import Store
from pipeline.table import Table, open_table
from pipeline.table.initial_codes import check_condition
from tests.fuzz.kind import BrokenPromiseError, Case, Kind, check_line, write_case
from tests.fuzz.mutate import mutated
from tests.fuzz.tables import sound

_SECRET = "hunter2-of-another-file"
_FILES = (
    *("{root}/latents/s-0-00000.parquet", "{root}/x.parquet", "{beside}/secret.csv", "x.csv"),
    *("x", "restyle-table://latents/s-0-00000.parquet", "restyle-table://../secret.csv", ".tmp/x"),
    *("{beside}", "{root}/*", "/proc/self/environ", "http://127.0.0.1:9/x.parquet", "s3://b/x"),
)
_STATEMENTS = (
    *("COPY ({query}) TO '{file}'", "COPY latents FROM '{file}'", "EXPORT DATABASE '{file}'"),
    *("ATTACH '{file}' AS y", "CREATE TABLE y AS {query}", "INSERT INTO latents {query}"),
    *("INSTALL httpfs", "LOAD '{file}'", "SET enable_external_access = true", "PRAGMA version"),
    *("IMPORT DATABASE '{file}'", "CALL read_text('{file}')", "VACUUM", "EXPLAIN {query}"),
    "{query}",
)
_SOURCES = (
    *("latents", "rejects", "shards", "'{file}'", '"{file}"', "({query})", "range(3)"),
    *("read_text('{file}')", "read_blob('{file}')", "read_csv('{file}')", "glob('{file}')"),
    *("read_parquet('{file}')", "parquet_metadata('{file}')", "query({text})", "sniff_csv({text})"),
    *("query_table({text})", "json_execute_serialized_sql(json_serialize_sql({text}))"),
    *("json_execute_serialized_sql({text})", "duckdb_settings()", "unnest([1, 2])"),
)
_VALUES = (
    *("1", "key", "l2", "'a'", "count(*)", "({query})", "getenv('HOME')", "{text}", "NULL"),
    *("json_serialize_plan({text})", "json_serialize_sql({text})", "current_setting({text})"),
    *("EXISTS ({query})", "[x FOR x IN l2_per_step]", "list_sum(l2_per_step)", "l2 < {value}"),
    *("true) OR (true", "true) --", "1; {statement}", "/*", "$${text}$$", "x -> {value}"),
)
_QUERIES = (
    *("SELECT {value} FROM {source}", "FROM {source}", "SELECT * FROM {source} WHERE {value}"),
    *("WITH a AS ({statement}) SELECT * FROM a", "WITH \"{file}\" AS ({query}) FROM '{file}'"),
    *("SELECT {value}, {value} FROM {source} ORDER BY {value}", "{query} UNION ALL {query}"),
    *("SUMMARIZE {source}", "DESCRIBE {query}", "FROM (PIVOT {source} ON key USING count(*))"),
    *("VALUES ({value})", "FROM {source} a JOIN {source} b ON {value}", "TABLE {source}"),
)
_FRAME = pa.table({"a": [1], "parquet": ["x"]})
_CHOICES = {
    **{"query": _QUERIES, "source": _SOURCES, "value": _VALUES, "statement": _STATEMENTS},
    "file": _FILES,
}


def _text(draw: Random, kind: str, depth: int = 0) -> str:
    """Return a text of the kind; deeply nested ones are plain."""
    choices = _CHOICES[kind]
    form = draw.choice(choices if depth < 5 else choices[:1])
    for name in ("query", "source", "value", "statement", "file"):
        while f"{{{name}}}" in form:
            form = form.replace(f"{{{name}}}", _text(draw, name, depth + 1), 1)
    while "{text}" in form:
        statement = _text(draw, "statement", depth + 1).replace("'", "''")
        form = form.replace("{text}", f"'{statement}'", 1)
    return form


def _make(draw: Random) -> Case:
    sound()  # create its cached files outside the case
    kind = draw.choice(("query", "query", "statement", "value"))
    text = _text(draw, kind).encode()
    if draw.random() < 0.3:
        text = mutated(draw, text, most=2)
    return {("where" if kind == "value" else "query"): text[:20_000]}


def _tasks(table: Table, case: Case, names: dict[str, str]) -> list[Callable[[], Any]]:
    def filled(name: str) -> str:
        text = case[name].decode(errors="replace")
        for key, value in names.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    if "query" in case:
        return [
            lambda: table.arrow(filled("query")),
            lambda: list(table.batches(filled("query"), 9)),
            lambda: table.arrow(filled("query"), x=_FRAME),
        ]
    return [
        lambda: NamedSelection(table, filled("where") or "x").counts(),
        lambda: list(NamedSelection(table, filled("where") or "x").named_rows()),
        lambda: check_condition(table, filled("where")),
    ]


def _run(case: Case, folder: Path) -> str:
    root = folder / "table"
    write_case(sound(), root)
    (folder / "secret.csv").write_text(f"a,b\n{_SECRET},1\n")
    store = Store(str(folder))
    before = {name: store.get(name) for name in store.names()}
    table, outcome = open_table(str(root)), "row"
    for task in _tasks(table, case, {"root": str(root), "beside": str(folder)}):
        try:
            answer = str(task())
        except PipelineError as error:
            check_line(error)
            if not isinstance(error, RequestError):
                raise
            outcome, answer = "error:RequestError", str(error)
        if _SECRET in answer:
            raise BrokenPromiseError(f"a query gave what another file holds: {answer[:300]}")
    if {name: store.get(name) for name in store.names()} != before:
        raise BrokenPromiseError("a query changed a file")
    return outcome


KINDS = [Kind("sql", _make, _run, share=2, memory_mib=512, limit_s=120)]
