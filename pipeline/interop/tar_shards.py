"""Write faces as WebDataset shards: tar archives of samples, each a few files with one key.

| file of a sample           | content                                                             |
|----------------------------|---------------------------------------------------------------------|
| `<key>.jpg`                | the aligned crop, where the table keeps it (`--keep-crops`)         |
| `<key>.npy` or `.pth`      | the code, float32 [n_styles, 512]                                   |
| `<key>.json`               | every other column of the row, and `table`, the table's URI         |
| `<key>.reconstruction.jpg` | the reconstruction, where the table keeps it                        |
| `<key>.reconstruction.png` | the same rendered by the model, on request                          |

Keys are the names of `NamedSelection`, escaped by `to_sample_key`. The archives are POSIX tar
without times and owners: the same rows give the same bytes. `_export` beside them has the
plan, by which an interrupted export is continued.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.interop.exporting import CodeForm, NamedSelection, code_file
from pipeline.interop.file_names import to_sample_key
from pipeline.interop.file_series import Render, Series
from pipeline.storage import OutputKind, Store
from pipeline.table.schema import codes_of

PLAN_NAME = "_export"
CODE_SUFFIXES: dict[CodeForm, str] = {"npy": "npy", "pt": "pth"}
_NAME = re.compile(r"shard-\d{5}-of-\d{5}\.tar")
_PICTURES = {"aligned_jpeg": "jpg", "reconstruction_jpeg": "reconstruction.jpg"}
_BESIDE = {"w_plus", "w_plus_per_step", *_PICTURES}  # columns that are not in the JSON


def _is_export(_: Store, names: Sequence[str]) -> bool:
    return all(name == PLAN_NAME or _NAME.fullmatch(name) for name in names)


TAR_OUTPUT = OutputKind("a folder of WebDataset shards of an export", _is_export)


def export_tars(
    series: Series,
    selection: NamedSelection,
    uri: str,
    form: CodeForm = "npy",
    render: Render | None = None,
) -> dict[str, int]:
    """Write `shard-<number>-of-<count>.tar` below `uri`; return counts for the JSON line.

    `form` is the file of a code; with `render` each code also gets its picture. Shards of the same
    export are kept. Raises `ConfigError` for ambiguous names and for shards of another export.
    """
    selection.refuse_ambiguous(with_suffix=False)
    store, names = Store(uri), series.names("shard", ".tar")
    existing = _existing(series, store)

    def encode(path: Path, tables: Iterator[pa.Table]) -> None:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for table in tables:
                for name, content in _sample_files(table, selection, form, render):
                    _add(archive, name, content)

    return series.write(store, names, existing, encode)


def _existing(series: Series, store: Store) -> set[str]:
    """Return the shards that exist; write the plan, or compare it with the stored one."""
    existing = set(store.names("shard-"))
    if existing and not store.exists(PLAN_NAME):
        raise ConfigError(
            f"'{store.root}' holds shards of another program (it has no {PLAN_NAME}): choose a "
            "folder that is new or empty"
        )
    text = json.dumps(dict(series.plan), sort_keys=True, indent=1)
    if not store.put_if_absent(PLAN_NAME, f"{text}\n".encode()):
        try:
            stored = json.loads(store.get(PLAN_NAME))
        except ValueError as error:
            raise ConfigError(f"'{store.uri(PLAN_NAME)}' is damaged: {error}") from error
        series.check_plan(stored, store.uri(PLAN_NAME))
    return existing


def _sample_files(
    table: pa.Table, selection: NamedSelection, form: CodeForm, render: Render | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the samples of these rows: names in the archive, and contents."""
    codes = codes_of(table["w_plus"])
    rendered = render(codes) if render else None
    facts = table.select([name for name in table.column_names if name not in _BESIDE]).to_pylist()
    pictures = {
        suffix: table[column].to_pylist()
        for column, suffix in _PICTURES.items()
        if column in table.column_names
        and not (rendered is not None and column == "reconstruction_jpeg")
    }
    for index, fact in enumerate(facts):
        key = to_sample_key(selection.name_of(fact["key"], fact["image_id"]))
        if "\0" in key:
            raise ConfigError(
                f"{fact['image_id']!r} contains a null character, which no archive can name: "
                "exclude it with --where"
            )
        files = {suffix: content[index] for suffix, content in pictures.items()}
        files[CODE_SUFFIXES[form]] = code_file(codes[index], form)
        document = {**fact, "table": selection.table.store.root}
        files["json"] = json.dumps(document, default=_as_json, ensure_ascii=False).encode()
        if rendered is not None:
            files["reconstruction.png"] = rendered[index]
        yield from (
            (f"{key}.{suffix}", content) for suffix, content in sorted(files.items()) if content
        )


def _as_json(value: Any) -> str:
    """Return a value that JSON has no form for: bytes in base64, times and numbers as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))
