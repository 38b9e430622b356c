"""Export a table's codes as files for other programs: `latents.npy`, or one file per code.

The published scripts name files by the last component of a path, so that `a/1.jpg` and `b/1.jpg`
overwrite each other. Here ambiguous names are refused with a list before anything is written.
Naming by `id` uses the image id, which is unique. Names that would lead out of the folder, such as
`../x` from an archive, are escaped (see `file_names`).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.interop.file_names import limits_of, to_file_name
from pipeline.interop.pickled_codes import Codes, latents_file
from pipeline.storage import OutputKind, Store, file_place
from pipeline.storage.file_types import IMAGE_SUFFIXES, without_image_suffix
from pipeline.table.schema import STYLE_DIM
from pipeline.table.selection import Selection

Naming = Literal["basename", "id"]
CodeForm = Literal["npy", "pt"]

EXPORTED = (".npy", ".pt", ".png")
# Bytes of codes in one dictionary, which is created, pickled and read as one object.
MAX_DICTIONARY_BYTES = 2 << 30
_NAME_ROWS = 4096
_PUTS = 16  # concurrent writes: each waits for the disk or bucket, not for the CPU
_LISTED = 5
# As `without_image_suffix` does, in SQL.
_SUFFIX = "(.)[.](" + "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES) + ")$"


@dataclass(frozen=True)
class NamedSelection(Selection):
    """Faces of a table to export, and the naming of their files.

    Names keep an image's extension only `with_suffix`, as in the keys of `latents.npy`.
    """

    naming: Naming = "basename"

    def named_rows(self, columns: str, *, with_suffix: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the selected faces: `name`, `image_id` and `columns`.

        Only one batch is in memory. Raises `ConfigError` before the first row when several faces
        have one name.
        """
        self.refuse_ambiguous(with_suffix)
        yield from self.rows(f"{self._name(with_suffix)} AS name, image_id, {columns}")

    def check_files(self, uri: str, suffix: str, folder: str = "") -> None:
        """Raise `ConfigError` unless every face can have a file below `uri`.

        The file is `<folder><name><suffix>`, escaped by `to_file_name`. Refused are names that are
        too long or contain a null character, and a file that would also have to be a folder
        (`a.npy` and `a.npy/b.npy`), in buckets too, as no disk could hold a copy. Only neighbours
        are compared: DuckDB sorts the names by their components, so that names below a name follow
        it directly.
        """
        limits = limits_of(uri, folder)
        query = (
            f"SELECT name, image_id FROM (SELECT {self._name(with_suffix=False)} AS name, image_id "
            f"FROM {self.source}) ORDER BY string_split(name || '{suffix}', '/')"
        )
        previous, previous_id = "", ""
        for batch in self.table.batches(query, _NAME_ROWS):
            for row in batch.to_pylist():
                path = f"{to_file_name(row['name'])}{suffix}"
                if why := limits.why_not(path):
                    raise ConfigError(
                        f"'{row['image_id']}' is not a possible file name: {why}; "
                        "choose other faces with --where, or export the dictionary (--as latents)"
                    )
                if previous and path.startswith(f"{previous}/"):
                    raise ConfigError(
                        f"'{previous}', the file of '{previous_id}', would also be the folder for "
                        f"the file of '{row['image_id']}'; choose one of them with --where"
                    )
                previous, previous_id = path, row["image_id"]

    def name_of(self, key: str, image_id: str) -> str:
        """Return the name of a face without an image's extension, as `named_rows` gives it."""
        return image_id if self.naming == "id" else without_image_suffix(key.rpartition("/")[2])

    def _name(self, with_suffix: bool) -> str:
        if self.naming == "id":
            return "image_id"
        base = "regexp_extract(key, '[^/]*$')"
        return base if with_suffix else rf"regexp_replace({base}, '{_SUFFIX}', '\1', 'is')"

    def refuse_ambiguous(self, with_suffix: bool) -> None:
        """Raise `ConfigError`, with the list, when several faces have one name."""
        if self.naming == "id":
            return
        rows = self.table.arrow(
            f"SELECT name, list(image_id ORDER BY image_id) AS ids FROM "
            f"(SELECT {self._name(with_suffix)} AS name, image_id FROM {self.source}) "
            f"GROUP BY name HAVING count(*) > 1 ORDER BY name"
        ).to_pylist()
        if rows:
            raise ConfigError(
                f"{len(rows)} names are shared by several faces: "
                f"{listed({row['name']: row['ids'] for row in rows})}; name files by id with "
                "--names id, or choose faces with --where"
            )


def export_dictionary(selection: NamedSelection, uri: str) -> int:
    """Write `latents.npy` at `uri`; return the number of faces in it.

    It has {file name: [code of each step]}, or only the best step's code when the table has no
    steps. Raises `ConfigError` when the codes take more than 2 GiB.
    """
    table = selection.table
    all_steps = table.spec.columns.all_steps
    faces = stored = selection.require_rows()
    if all_steps:
        query = f"SELECT coalesce(sum(steps), 0) AS steps FROM {selection.source}"
        stored = int(table.arrow(query)["steps"][0].as_py())
    size = stored * table.spec.columns.n_styles * STYLE_DIM * 4
    if size > MAX_DICTIONARY_BYTES:
        raise ConfigError(
            f"the codes of {faces:,} faces take {size / 2**30:.1f} GiB, but a latents.npy may "
            f"have at most {MAX_DICTIONARY_BYTES / 2**30:g} GiB, as it is one object in memory: "
            "export single codes (--as codes), or choose faces with --where"
        )
    column = "w_plus_per_step AS codes" if all_steps else "w_plus AS codes"
    codes: dict[str, Codes] = {}
    for row in selection.named_rows(column, with_suffix=True):
        codes[row["name"]] = row["codes"] if all_steps else row["codes"][None]
    store, name = file_place(uri)
    store.put(name, latents_file(codes))
    return len(codes)


def export_codes(selection: NamedSelection, uri: str, form: CodeForm = "npy") -> int:
    """Write each face's code, float32 [n_styles, 512], to `<name>.npy` or `.pt` below `uri`.

    Returns the number of files. Memory does not grow with the number of faces.
    """
    files = (
        (f"{to_file_name(row['name'])}.{form}", code_file(row["w_plus"], form))
        for row in selection.named_rows("w_plus")
    )
    return put_files(selection, uri, files, f".{form}")


def put_files(
    selection: NamedSelection,
    uri: str,
    files: Iterator[tuple[str, bytes]],
    suffix: str,
    folder: str = "",
) -> int:
    """Write (name, content) pairs below `uri`; return their number.

    Names are `<folder><name of a face><suffix>`, where `folder` is the longest one. An existing
    file with the same content is kept. Raises `ConfigError` for one with other content, when there
    are no pairs, and before the first one for what `check_files` refuses.
    """
    selection.check_files(uri, suffix, folder)
    store, count = Store(uri), 0
    with ThreadPoolExecutor(_PUTS) as pool:
        while group := list(itertools.islice(files, 4 * _PUTS)):
            for _ in pool.map(lambda file: _put_new(store, *file), group):
                count += 1
    selection.refuse_none(count)
    return count


def _put_new(store: Store, name: str, content: bytes) -> None:
    """Write a file unless it exists; `ConfigError` if it exists with other content."""
    if not store.put_if_absent(name, content) and store.get(name) != content:
        raise ConfigError(
            f"'{store.uri(name)}' exists with other content and is not replaced: choose another "
            "folder, or delete the earlier export in this one"
        )


def _is_export(_: Store, names: Sequence[str]) -> bool:
    """Return whether all names may be of an export; contents are compared on writing."""
    return all(name.endswith((*EXPORTED, "/")) for name in names)


EXPORT_OUTPUT = OutputKind("a folder of exported codes or pictures", _is_export)


def code_file(code: Codes, form: CodeForm) -> bytes:
    """Return one code as the bytes of a `.npy` or `.pt` file."""
    sink = io.BytesIO()
    if form == "npy":
        np.save(sink, code)
    else:
        import torch  # slow to import, not needed for .npy

        torch.save(torch.from_numpy(np.array(code)), sink)
    return sink.getvalue()


def listed(ambiguous: Mapping[str, Sequence[str]]) -> str:
    """Return the first names and what they mean as text: `'1' (a/1.jpg, b/1.jpg); ...`."""
    first = list(ambiguous.items())[:_LISTED]
    text = "; ".join(
        f"'{name}' ({', '.join(meanings[:3])}{', ...' * (len(meanings) > 3)})"
        for name, meanings in first
    )
    return text + (f"; and {len(ambiguous) - _LISTED} more" if len(ambiguous) > _LISTED else "")
