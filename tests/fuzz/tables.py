"""Tables as bad input, as written by another version, another program or a bad disk."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table import Table, open_for_writing, open_table
from pipeline.table.shard_index import ShardRecord, table_stats, write_index
from pipeline.table.shard_records import manifest_etags, read_shard_record
from pipeline.table.status import table_status
from tests.fuzz import words
from tests.fuzz.archives import json_text
from tests.fuzz.kind import BrokenPromiseError, Case, Kind, check_line, write_case
from tests.fuzz.mutate import mutated
from tests.table.rows import DESCRIPTION, shard, write_shard, writer

_PATHS = ("../../elsewhere", "/etc/passwd", "a/../../b", "..", "", "s-0/../x", "s" * 3000)


@functools.cache
def sound() -> dict[str, bytes]:
    """Return the files of a small valid table: two committed shards and an open one."""
    with tempfile.TemporaryDirectory() as folder:
        table = writer(folder)
        for name in ("s-0", "s-1"):
            write_shard(table, shard(name))
        write_shard(table, shard("s-2"), commit=False)
        store = Store(folder)
        return {name: store.get(name) for name in store.names()}


def _places(value: Any, places: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in steps:
        places.append((value, key))
        if isinstance(item, dict | list):
            _places(item, places)
    return places


def changed_json(draw: Random, content: bytes) -> bytes:
    """Return the document with some values replaced, removed, duplicated or renamed."""
    document = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        places = _places(document, [])
        if not places:
            break
        container, key = draw.choice(places)
        way = draw.random()
        if way < 0.5:
            odd = (json_text(draw), draw.choice(_PATHS), 3, 99, "2", [], {}, -1, 10**30)
            container[key] = draw.choice(odd)
        elif way < 0.75:
            del container[key]
        elif isinstance(container, dict):
            container[words.text(draw)] = container.pop(key)
        else:
            container.append(container[key])
    return json.dumps(document).encode()


def _make(draw: Random) -> Case:
    case = dict(sound())
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(sorted(case))
        content = case[name]
        way = draw.random()
        if name.endswith(".json") and way < 0.8:
            case[name] = changed_json(draw, content)
        elif way < 0.1:
            del case[name]
        elif way < 0.2:  # content of another file under this name
            case[name] = case[draw.choice(sorted(case))]
        elif way < 0.3:
            case[name + draw.choice(("", ".parquet", "~"))] = content
            case[name.replace("s-1", words.text(draw).replace("/", "_")[:50])] = content
        else:
            case[name] = mutated(draw, content, most=4)
    return {name: content for name, content in case.items() if "\0" not in name}


def _tasks(table: Table) -> list[Callable[[], object]]:
    ids = ["s-0/a#0", "s-2/x/b#0"]
    return [
        lambda: table.sql("SELECT count(*), sum(l2) FROM latents"),
        lambda: table.sql("SELECT * FROM latents ORDER BY image_id"),
        lambda: table.sql("SELECT reason, count(*) FROM rejects GROUP BY reason"),
        lambda: table.sql("SELECT sum(faces) FROM shards"),
        lambda: table.w_plus(ids),
        lambda: table.shards(),
        lambda: table.verify(),
        lambda: table.verify(checksums=False),
    ]


def _continue(root: str) -> None:
    """Continue the table as a run over the same input does."""
    table = open_for_writing(root, DESCRIPTION, part_size=4)
    shards = [shard(name) for name in ("s-0", "s-1", "s-2")]
    for state in table.states(shards):
        table.clear(state)
        if not state.done:
            write_shard(table, state.shard)


def _run(case: Case, folder: Path) -> str:
    write_case(case, folder)
    root = str(folder)
    errors: list[PipelineError] = []

    def attempt(task: Callable[[], Any]) -> Any:
        try:
            return task()
        except PipelineError as error:
            check_line(error)
            errors.append(error)

    table = attempt(lambda: open_table(root))
    for task in _tasks(table) if table else []:
        attempt(task)
    attempt(lambda: _continue(root))
    return f"error:{type(errors[0]).__name__}" if errors else "row"


_NUMBERS = (0, -1, 1, 7, 10**9, 2**63 - 1)
_TEXTS = ("", "etag-2", "s3://elsewhere/s-0.tar", "{}", "[]", '{"reasons": {"x": 9}}', "\x1b[2J")


@functools.cache
def indexed() -> tuple[dict[str, bytes], list[ShardRecord]]:
    """Return the committed part of the valid table, and the correct rows of its index."""
    case = {name: content for name, content in sound().items() if "s-2" not in name}
    with tempfile.TemporaryDirectory() as folder:
        write_case(case, Path(folder))
        store = Store(folder)
        return case, [read_shard_record(store, name) for name in ("s-0", "s-1")]


def _make_lie(draw: Random) -> Case:
    """Return a table with one false field in a manifest, a part, the description or the index."""
    case = dict(indexed()[0])
    name = draw.choice(("_shards/s-0.json", "_shards/s-1.json", "_table.json", "index", "index"))
    if name == "index":
        row = {"line": draw.randrange(2), "field": draw.choice(_LINE_FIELDS)}
        odd = _NUMBERS if row["field"] in _LINE_NUMBERS else _TEXTS
        return case | {"lie.json": json.dumps({**row, "value": draw.choice(odd)}).encode()}
    document = json.loads(case[name])
    places = [
        (container, key)
        for container, key in _places(document, [])
        if isinstance(container[key], int | str) and not isinstance(container[key], bool)
    ]
    container, key = draw.choice(places)
    is_number = isinstance(container[key], int)
    container[key] = draw.choice(_NUMBERS if is_number else _TEXTS)
    return case | {name: json.dumps(document).encode()}


# Fields that no other file of this table repeats: it has no bundle and no config with a layout.
_WITHOUT_PROOF = {"size", "left_out", "config", "layout", "model"}
_LINE_NUMBERS = ("size", "samples", "faces", "rejects", "n_parts")
_LINE_FIELDS = (*_LINE_NUMBERS, "uri", "etag", "figures")


def _run_lie(case: Case, folder: Path) -> str:
    """Check that a false field is refused, and that an unchanged table is valid."""
    files = {name: content for name, content in case.items() if name != "lie.json"}
    write_case(files, folder)
    store = Store(str(folder))
    if "lie.json" in case:
        return _run_line(json.loads(case["lie.json"]), store)
    table = open_table(store.root)
    changed = [name for name, content in files.items() if content != sound()[name]]
    try:
        counts = table.verify()
    except PipelineError as error:
        check_line(error)
        return f"error:{type(error).__name__}"
    before, now = (json.loads(case_files[changed[0]]) for case_files in (sound(), files))
    changed_fields = {name for name in now if now[name] != before.get(name)}
    if not changed_fields <= _WITHOUT_PROOF and now != before:
        raise BrokenPromiseError(
            f"verify() passes {changed[0]} with other {sorted(changed_fields)}"
        )
    if counts["faces"] != 8:
        raise BrokenPromiseError(f"verify() counts {counts}")
    return "row"


def _run_line(lie: dict[str, Any], store: Store) -> str:
    etags = dict(manifest_etags(store))
    lines = [replace(entry, manifest_etag=etags[entry.shard]) for entry in indexed()[1]]
    true = lines[lie["line"]]
    lines[lie["line"]] = forged = replace(true, **{lie["field"]: lie["value"]})
    write_index(store, lines)
    totals, status = table_stats(store).counts, table_status(store.root)
    if (totals.samples, totals.faces, totals.rejects, status.faces) != (12, 8, 8, 8):
        raise BrokenPromiseError(f"a line of the index makes the totals {totals}")
    unchanged = shard(true.shard)
    changed = replace(unchanged, etag=forged.etag, size=forged.size)
    (state,) = writer(store.root).states([changed])
    if state.done and changed != unchanged:
        raise BrokenPromiseError("a changed input is committed by a line of the index")
    return "row"


KINDS = [
    Kind("lie", _make_lie, _run_lie, share=1, memory_mib=512, limit_s=120),
    Kind("table", _make, _run, share=1, memory_mib=512, limit_s=120),
]
