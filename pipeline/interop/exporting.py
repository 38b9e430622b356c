"""Codes of a table as the files that other programs read: `latents.npy`, one file a code.

The published scripts name everything by the last component of a path, so that `a/1.jpg` and
`b/1.jpg` overwrite each other. Here names that stand for several faces are refused before
anything is written, with the list; `id` names files by image id, which is unique. Names that are
no places inside a folder (`../x`, out of an archive) are written as `file_names` has them.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.interop.file_names import limits_of, to_file_name
from pipeline.interop.pickled_codes import Codes, latents_file
from pipeline.storage import OutputKind, Store, canonical_uri
from pipeline.storage.file_types import IMAGE_SUFFIXES
from pipeline.table.reader import Table
from pipeline.table.schema import STYLE_DIM
from pipeline.table.statements import condition

Naming = Literal["basename", "id"]
CodeForm = Literal["npy", "pt"]

EXPORTED = (".npy", ".pt", ".png")
# Of codes in one dictionary: it is one object, which is made, pickled and read whole.
LARGEST_DICTIONARY = 2 << 30
_BATCH_ROWS = 32
_NAME_ROWS = 4096
_PUTS = 16  # in flight: a put waits for a disk or a bucket, not for this machine
_LISTED = 5
_SUFFIX = "[.](" + "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES) + ")$"


@dataclass(frozen=True)
class Selection:
    """Which faces of a table, and what their files are called.

    `where` is an SQL condition on rows of `latents`; names keep an image's extension only
    `with_suffix`, as the keys of `latents.npy` do.
    """

    table: Table
    where: str = ""
    naming: Naming = "basename"

    def rows(self, columns: str = "", *, with_suffix: bool = False) -> Iterator[dict[str, Any]]:
        """The faces in the table's order, a few in memory: `name`, `image_id` and `columns`.

        Raises `ConfigError` before the first where a name stands for several faces.
        """
        self._refuse_ambiguous(with_suffix)
        more = f", {columns}" if columns else ""
        query = f"SELECT {self._name(with_suffix)} AS name, image_id{more} FROM {self._chosen}"
        for batch in self.table.batches(query, _BATCH_ROWS):
            yield from _rows(batch)

    def check_files(self, uri: str, suffix: str, folder: str = "") -> None:
        """Raise `ConfigError` unless every face can have its file at `uri`.

        That is `<folder><name><suffix>`, as `to_file_name` writes it.

        Refused are names that are too long or hold a null character, and a file that another one
        needs as its folder (`a.npy` and `a.npy/b.npy`). Neighbours are compared: DuckDB sorts the
        names by their components, on its disk where they are many, so that what lies below a name
        comes right behind it. The same two are refused in a bucket: no disk could take a copy.
        """
        limits = limits_of(uri, folder)
        query = (
            f"SELECT name, image_id FROM (SELECT {self._name(with_suffix=False)} AS name, image_id "
            f"FROM {self._chosen}) ORDER BY string_split(name || '{suffix}', '/')"
        )
        above, owner = "", ""
        for batch in self.table.batches(query, _NAME_ROWS):
            for row in batch.to_pylist():
                path = f"{to_file_name(row['name'])}{suffix}"
                if why := limits.why_not(path):
                    raise ConfigError(
                        f"'{row['image_id']}' cannot be the name of a file: {why}; "
                        "choose other faces with --where, or export the dictionary (--as latents)"
                    )
                if above and path.startswith(f"{above}/"):
                    raise ConfigError(
                        f"the file of '{owner}', {above}, would have to be the folder of that of "
                        f"'{row['image_id']}'; choose one of them with --where"
                    )
                above, owner = path, row["image_id"]

    def counts(self) -> tuple[int, int]:
        """How many faces, and how many steps all of them made."""
        found = self.table.sql(
            f"SELECT count(*) AS faces, coalesce(sum(steps), 0) AS steps FROM {self._chosen}"
        ).iloc[0]
        return int(found.faces), int(found.steps)

    @property
    def _chosen(self) -> str:
        return f"(SELECT * FROM latents{f' WHERE {condition(self.where)}' if self.where else ''})"

    def _name(self, with_suffix: bool) -> str:
        if self.naming == "id":
            return "image_id"
        base = "regexp_extract(key, '[^/]*$')"
        return base if with_suffix else f"regexp_replace({base}, '{_SUFFIX}', '', 'i')"

    def _refuse_ambiguous(self, with_suffix: bool) -> None:
        if self.naming == "id":
            return
        shared = self.table.sql(
            f"SELECT name, list(image_id ORDER BY image_id) AS ids FROM "
            f"(SELECT {self._name(with_suffix)} AS name, image_id FROM {self._chosen}) "
            f"GROUP BY name HAVING count(*) > 1 ORDER BY name"
        )
        if shared.empty:
            return
        listed = "; ".join(
            f"'{row.name}' ({', '.join(map(str, row.ids[:3]))}{', ...' * (len(row.ids) > 3)})"
            for row in shared.head(_LISTED).itertuples(index=False)
        )
        more = f"; and {len(shared) - _LISTED} more" if len(shared) > _LISTED else ""
        raise ConfigError(
            f"{len(shared)} names stand for several faces: {listed}{more}; name files by image id "
            "with --names id, or choose faces with --where"
        )


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch; nested lists of numbers as float32 arrays [..., n_styles, 512]."""
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    for index in range(batch.num_rows):
        yield {name: values[index] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    kind, depth = column.type, 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth < 2 or not len(column):
        found: list[Any] = column.to_pylist()
        return found
    lengths = np.diff(column.offsets.to_numpy(), axis=0) if depth > 2 else None
    rows = column.flatten() if depth > 2 else column
    n_styles = len(rows[0]) if len(rows) else 0
    flat = rows.flatten().flatten().to_numpy(zero_copy_only=False)
    codes = np.asarray(flat, np.float32).reshape(-1, n_styles, STYLE_DIM)
    return list(codes) if lengths is None else np.split(codes, np.cumsum(lengths)[:-1])


def export_dictionary(selection: Selection, uri: str) -> int:
    """Write `latents.npy` at `uri`; the number of faces in it.

    {file name: [code of each step]}; where the table keeps no steps, the one code that it has.
    Raises `ConfigError` where the codes take more than 2 GiB: export single files then.
    """
    table = selection.table
    all_steps = table.spec.columns.all_steps
    faces, steps = selection.counts()
    size = (steps if all_steps else faces) * table.spec.columns.n_styles * STYLE_DIM * 4
    if size > LARGEST_DICTIONARY:
        raise ConfigError(
            f"the codes of {faces:,} faces take {size / 2**30:.1f} GiB, and a latents.npy is one "
            f"object in memory, of at most {LARGEST_DICTIONARY / 2**30:g} GiB here: export single "
            "codes (--as codes), or choose faces with --where"
        )
    column = "w_plus_per_step AS codes" if all_steps else "w_plus AS codes"
    codes: dict[str, Codes] = {}
    for row in selection.rows(column, with_suffix=True):
        codes[row["name"]] = row["codes"] if all_steps else row["codes"][None]
    refuse_nothing(len(codes), selection)
    folder, _, name = canonical_uri(uri).rpartition("/")
    Store(folder or "/").put(name, latents_file(codes))
    return len(codes)


def export_codes(selection: Selection, uri: str, form: CodeForm = "npy") -> int:
    """Write each face's code, float32 [n_styles, 512], to `<name>.npy` or `.pt` below `uri`.

    The number of files. Memory holds a few codes, however many faces the table has.
    """
    files = (
        (f"{to_file_name(row['name'])}.{form}", code_file(row["w_plus"], form))
        for row in selection.rows("w_plus")
    )
    selection.check_files(uri, f".{form}")
    return put_files(uri, files, selection)


def put_files(uri: str, files: Iterator[tuple[str, bytes]], selection: Selection) -> int:
    """Put (name, content) pairs below `uri`, a few at a time and in memory; their number.

    A file that is there is left as it is. Raises `ConfigError` where it has another content, and
    where there are no pairs; `Selection.check_files` comes before it.
    """
    store, count = Store(uri), 0
    with ThreadPoolExecutor(_PUTS) as pool:
        while group := list(itertools.islice(files, 4 * _PUTS)):
            for _ in pool.map(lambda file: _put_beside(store, *file), group):
                count += 1
    refuse_nothing(count, selection)
    return count


def _put_beside(store: Store, name: str, content: bytes) -> None:
    """Put a file unless the same one is there; `ConfigError` where another one is."""
    if not store.put_if_absent(name, content) and store.get(name) != content:
        raise ConfigError(
            f"'{store.uri(name)}' is there already, with another content, and is not replaced: "
            "choose another folder, or remove what earlier exports left in this one"
        )


def _is_export(_: Store, names: Sequence[str]) -> bool:
    """Return whether a folder may be one of exports, by names: each file is compared when put."""
    return all(name.endswith((*EXPORTED, "/")) for name in names)


EXPORT_OUTPUT = OutputKind("a folder of exported codes or pictures", _is_export)


def code_file(code: Codes, form: CodeForm) -> bytes:
    """One code as the bytes of a `.npy` or a `.pt` file."""
    sink = io.BytesIO()
    if form == "npy":
        np.save(sink, code)
    else:
        import torch  # numpy's files need none of it

        torch.save(torch.from_numpy(np.array(code)), sink)
    return sink.getvalue()


def without_suffix(name: str) -> str:
    """`name` without the extension of an image."""
    return re.sub(_SUFFIX, "", name, flags=re.IGNORECASE)


def refuse_nothing(count: int, selection: Selection) -> None:
    """Raise `ConfigError` where nothing was exported."""
    if not count:
        root = selection.table.store.root
        if selection.where:
            raise ConfigError(
                f"--where \"{selection.where}\" chooses no face of the table '{root}'"
            )
        raise ConfigError(f"the table '{root}' has no face to export")
