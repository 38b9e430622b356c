"""Aligned target crops of a table's faces: the kept crop, or the source read and cropped again.

A source is read through the storage readers, so that any input of a table works: files of folders
and lists, archives, Parquet, on disks and in buckets. The crop is made with the alignment settings
that the table stores and the square (`align_quad`) that each row stores.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.recrop import crop_again
from pipeline.alignment.settings import AlignmentSettings
from pipeline.errors import PipelineError, TableError, printable
from pipeline.images import Rejection
from pipeline.storage import (
    FILES_PER_SHARD,
    ReadOptions,
    Sample,
    Shard,
    list_shards,
    read_samples,
    slice_number,
)
from pipeline.storage.listing import UNKNOWN_SIZE, file_entry
from pipeline.table import Table
from pipeline.table.shard_records import manifest_name, read_shard_record
from pipeline.table.spec import EARLIER_VALUES, TableSpec

Pixels = NDArray[np.uint8]
Row = Mapping[str, Any]

MISSING, CHANGED, UNREADABLE, UNKNOWN = "missing", "changed", "unreadable", "unknown"
_MEANINGS = {
    MISSING: "the source is not there or cannot be read",
    CHANGED: "the source is another image now",
    UNREADABLE: "the source cannot be cropped again",
    UNKNOWN: "the table does not know the source",
}
_PREFIX = "settings.alignment."
_COLUMNS = ("image_id", "shard", "key", "source_uri", "source_sha256", "align_quad")


class NoTarget(NamedTuple):
    """Reason why a face has no target: one of the four words above, and a text for the user."""

    reason: str
    detail: str


class Targets:
    """Target crops of faces of one table, uint8 [h, w, 3], of the encoder's input size.

    `not_found` counts the faces without a target by reason: `missing`, `changed`, `unreadable`,
    `unknown`. `summary` is a line for the user about them.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.not_found: Counter[str] = Counter()
        self._examples: dict[str, str] = {}  # one per reason
        self._settings = alignment_of(table.spec)
        self._options = _read_options(table.spec)
        self._shards: dict[str, Shard] = {}

    @property
    def columns(self) -> str:
        """Return the SQL list of the columns that `crops` needs."""
        columns = self.table.spec.columns
        optional = [name for name in ("turn_deg", "aligned_jpeg") if getattr(columns, name)]
        return ", ".join((*_COLUMNS, *optional))

    def crops(self, rows: Sequence[Row]) -> dict[str, Pixels]:
        """Return the target of each row by `image_id`; rows without a target are left out.

        `rows` have the `columns`. A source is used only if its SHA-256 is the one of the row. Each
        shard is read once, up to the last of its rows. Memory holds the crops, not the sources.
        """
        crops: dict[str, Pixels] = {}
        to_read: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row.get("aligned_jpeg"):
                crops[row["image_id"]] = decoded(row["aligned_jpeg"])
            elif problem := self._unreadable_row(row):
                self._count(row, problem)
            else:
                to_read[row["shard"]].append(row)
        for shard, in_shard in to_read.items():
            crops |= self._read(shard, in_shard)
        return crops

    def summary(self) -> str:
        """Return a line that counts the faces without a target by reason; "" if there are none."""
        if not self.not_found:
            return ""
        parts = [
            f"{count} ({reason}: {_MEANINGS[reason]}, such as {self._examples[reason]})"
            for reason, count in sorted(self.not_found.items())
        ]
        return f"faces without a target: {'; '.join(parts)}"

    def _unreadable_row(self, row: Row) -> NoTarget | None:
        """Return why the source of a row cannot be used, as far as the table shows it."""
        if self._settings is None or not row["source_sha256"]:
            return NoTarget(UNKNOWN, "the table was made from codes without images")
        if row["align_quad"] is None and not self._settings.prealigned:
            return NoTarget(UNKNOWN, "the face was not found in the image")
        return None

    def _read(self, shard_id: str, rows: Sequence[Row]) -> dict[str, Pixels]:
        """Read the sources of rows of one shard; return their crops by image id."""
        crops: dict[str, Pixels] = {}
        left = {row["image_id"]: row for row in rows}
        try:
            for row, sample in self._samples(shard_id, rows):
                result = self._crop(row, sample)
                if isinstance(result, NoTarget):
                    self._count(row, result)
                else:
                    crops[row["image_id"]] = result
                del left[row["image_id"]]
            problem = NoTarget(MISSING, f"the shard '{shard_id}' has no such image any more")
        except PipelineError as error:
            problem = NoTarget(MISSING, str(error))
        for row in left.values():
            self._count(row, problem)
        return crops

    def _samples(self, shard_id: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Sample]]:
        """Yield each row with the sample that it came from, in the order of the shard."""
        is_slice = slice_number(shard_id) is not None
        name = "source_uri" if is_slice else "key"
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_name[row[name]].append(row)
        if is_slice:
            samples = _files(by_name)
        else:
            members = read_samples(self._shard(shard_id), set(by_name), self._options)
            samples = ((sample.key, sample) for sample in members)
        for name, sample in samples:
            yield from ((row, sample) for row in by_name.pop(name, ()))
            if not by_name:
                return

    def _shard(self, shard_id: str) -> Shard:
        """Return the archive of a shard as it is now; rows compare the hashes of its images."""
        store = self.table.store
        if shard_id not in self._shards and store.exists(manifest_name(shard_id)):
            record = read_shard_record(store, shard_id)
            entry = file_entry(record.uri)
            kind: Any = record.kind
            self._shards[shard_id] = Shard(shard_id, record.uri, kind, entry.size, entry.etag)
        while shard_id not in self._shards:  # not committed yet: the input is listed up to it
            shard = next(self._listing, None)
            if shard is None:
                raise TableError(f"the input of the table has no shard '{shard_id}' any more")
            self._shards[shard.shard_id] = shard
        return self._shards[shard_id]

    @cached_property
    def _listing(self) -> Iterator[Shard]:
        layout = self.table.spec.layout
        return list_shards(
            str(layout.get("input", "")),
            files_per_shard=int(layout.get("files_per_shard") or FILES_PER_SHARD),
            options=self._options,
        )

    def _crop(self, row: Row, sample: Sample) -> Pixels | NoTarget:
        if sample.reject:
            return NoTarget(MISSING, sample.detail)
        if hashlib.sha256(sample.content).hexdigest() != row["source_sha256"]:
            return NoTarget(CHANGED, "its SHA-256 is not the one in the table")
        if self._settings is None:
            raise TypeError("a row without alignment settings was read")
        # Not in a child process: a job has decoded these bytes before without a crash.
        try:
            turn = row.get("turn_deg") or 0
            return crop_again(sample.content, self._settings, row["align_quad"], turn)
        except Rejection as rejection:
            return NoTarget(UNREADABLE, str(rejection))

    def _count(self, row: Row, problem: NoTarget) -> None:
        self.not_found[problem.reason] += 1
        text = printable(f"'{row['image_id']}': {problem.detail}")
        self._examples.setdefault(problem.reason, text)


def decoded(content: bytes) -> Pixels:
    """Decode a kept crop."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def alignment_of(spec: TableSpec) -> AlignmentSettings | None:
    """Return the settings that aligned a table's faces; None if it was made without images.

    Raises `TableError` if the spec has a setting that this version does not know.
    """
    stored = spec.settings.get("alignment") or spec.settings.get("measured", {}).get("alignment")
    if not stored:
        return None
    earlier = {
        name.removeprefix(_PREFIX): value
        for name, value in EARLIER_VALUES.items()
        if name.startswith(_PREFIX)
    }
    given = {**earlier, **stored}
    if "output_size" in given:
        given["output_size"] = tuple(given["output_size"])
    try:
        return AlignmentSettings(**given)
    except TypeError as error:
        raise TableError(f"the table's alignment settings are not known here: {error}") from error


def _read_options(spec: TableSpec) -> ReadOptions:
    layout = spec.layout
    return ReadOptions(
        sniff=bool(layout.get("sniff", EARLIER_VALUES["layout.sniff"])),
        image_field=str(layout.get("image_field", EARLIER_VALUES["layout.image_field"])),
        image_column=layout.get("image_column"),
    )


def _files(uris: Iterable[str]) -> Iterator[tuple[str, Sample]]:
    """Yield each of some files with its sample; a missing file is a sample with a reject."""
    names = tuple(uris)
    sizes = (UNKNOWN_SIZE,) * len(names)
    listed = Shard("targets", "/", "list", 0, "", names, sizes)
    yield from zip(names, read_samples(listed, set(listed.keys)), strict=True)
