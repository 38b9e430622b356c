"""Defects of a table, counted from its files without the code that wrote them."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.storage import Store
from pipeline.table import open_table

FOLDERS = ("latents", "rejects", "_shards")


@dataclass(frozen=True)
class Findings:
    """Counts that are all zero for a correct table; `problem` is the message of `verify`."""

    lost: int = 0  # samples of the input without a row
    duplicated: int = 0  # extra rows of latents for an image_id
    stray: int = 0  # visible files that an undisturbed run does not write
    different: int = 0  # files missing, or not byte-equal to an undisturbed run's
    leftovers: int = 0  # hidden temporary files: harmless, only counted
    problem: str = ""

    @property
    def sound(self) -> bool:
        """Return whether the table is correct."""
        return not (self.lost or self.duplicated or self.stray or self.different or self.problem)


def table_files(uri: str) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a table's three folders by name, and the names of hidden files."""
    store = Store(uri)
    visible, hidden = {}, []
    for folder in FOLDERS:
        root = store.path(folder)
        for path in store.fs.find(root) if store.fs.exists(root) else []:
            name = str(path)[len(store.path()) + 1 :]
            if name.rpartition("/")[2].startswith("."):
                hidden.append(name)
            else:
                visible[name] = store.fs.cat_file(path)
    return visible, hidden


def rows_of(files: dict[str, bytes], folder: str) -> list[tuple[str, str]]:
    """Return (image_id, sample) of every row in a folder's Parquet files, like any reader."""
    rows = []
    for name, content in files.items():
        if name.startswith(f"{folder}/") and name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content), columns=["image_id", "shard", "key"])
            rows += [(row["image_id"], f"{row['shard']}/{row['key']}") for row in table.to_pylist()]
    return rows


def contents_of(files: dict[str, bytes]) -> set[str]:
    """Return every row of latents and rejects as text, independent of its part file."""
    return {
        f"{name.partition('/')[0]} {row}"
        for name, content in files.items()
        if name.endswith(".parquet")
        for row in pq.read_table(io.BytesIO(content)).to_pylist()
    }


def examine(
    uri: str, samples: set[str], undisturbed: dict[str, bytes], *, recut: bool = False
) -> Findings:
    """Compare the table with the `samples` of the input and with the files of an undisturbed run.

    With `recut`, shards may be split into other parts than there; then rows are compared.
    """
    files, hidden = table_files(uri)
    latents, rejects = rows_of(files, "latents"), rows_of(files, "rejects")
    faces = Counter(image for image, _ in latents)
    try:
        open_table(uri).verify()
        problem = ""
    except PipelineError as error:
        problem = str(error)
    stray = len(files.keys() - undisturbed.keys())
    different = sum(files.get(name) != content for name, content in undisturbed.items())
    if recut:
        stray, different = 0, len(contents_of(files) ^ contents_of(undisturbed))
    return Findings(
        lost=len(samples - {sample for _, sample in latents + rejects}),
        duplicated=sum(faces.values()) - len(faces),
        stray=stray,
        different=different,
        leftovers=len(hidden),
        problem=problem,
    )
