"""Write edited codes as a table: one row per face and setting, measured against the unedited face.

Each committed shard of the source becomes a shard of the output, or with several settings one per
setting, with `-e0`, `-e1`, ... after its id. Keys and face numbers are those of the source, so that
two tables can be compared face by face.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.choices import CodeType
from pipeline.editing.directions import Floats
from pipeline.editing.edit import Edits
from pipeline.errors import ConfigError, RequestError
from pipeline.face_columns import ALIGNMENT_COLUMNS, SOURCE_COLUMNS, TURN_COLUMN
from pipeline.inversion.render import pooled, render_each
from pipeline.metrics import MetricEvaluator
from pipeline.metrics.latent_stats import w_avg_distance, w_plus_variance
from pipeline.metrics.registry import QUALITY
from pipeline.models import RestyleModel
from pipeline.storage import Shard, arrow_type
from pipeline.table.card import write_card
from pipeline.table.cleanup import Orphans
from pipeline.table.local_run import LocalRun
from pipeline.table.parts import LATENTS, PartRecord, part_name
from pipeline.table.queries import connect, create_view
from pipeline.table.reader import Table, open_table
from pipeline.table.resume import ShardState
from pipeline.table.runs import RunRecord
from pipeline.table.schema import Columns, codes_of
from pipeline.table.selection import Selection
from pipeline.table.shard_records import ShardRecord, manifest_ids, read_shard_record
from pipeline.table.spec import TableSpec
from pipeline.table.statements import condition
from pipeline.table.writer import TableWriter, open_for_writing

EDIT_VERSION = 1
METHOD = "edit"
_IMAGES_AT_ONCE = 64  # edited images that are measured together
_AGAINST = "against the unedited code's image"


@dataclass(frozen=True)
class TableEdit:
    """Edit of the selected faces of a table into a table of its own.

    `model` is the model of the table's codes, `meter` measures the edited images. The codes are
    stored as `latent_dtype`, by default the type that the source has.
    """

    selection: Selection
    model: RestyleModel
    edits: Edits
    meter: MetricEvaluator
    config: Mapping[str, Any] = field(default_factory=dict)
    latent_dtype: CodeType | None = None
    part_size: int = 256
    notes: list[str] = field(default_factory=list)  # messages for the user

    def run(self, root: str) -> dict[str, Any]:
        """Write the table at `root`, or complete it; return its counts.

        Faces of shards that the source's own job has not committed yet are left out. Raises
        `RequestError` before anything is written if no face is selected, and `FingerprintError` if
        the table at `root` was made with other settings.
        """
        record = RunRecord()
        self.selection.require_rows()
        sources = list(_sources(self.selection))
        if not sources:
            raise RequestError(
                f"the table '{self._table.store.root}' has no committed shard with a selected "
                "face: run its own job to the end first"
            )
        writer = open_for_writing(root, self.spec(), part_size=self.part_size)
        with LocalRun(writer, record) as run:
            self._write(writer, sources, run)
            table = open_table(root)
            if note := write_card(table):
                self.notes.append(note)
            counts: dict[str, Any] = table.verify(checksums=False)
            run.file.facts["edited"] = counts
        return counts

    def spec(self) -> TableSpec:
        """Return the spec of the edited table."""
        source = self._table.spec
        settings = {
            "edit": EDIT_VERSION,
            "model": self.model.fingerprint,
            "source": source.fingerprint,
            "directions": self.edits.to_dict(),
            "where": self.selection.where,
            "order": self.selection.order,
            "limit": self.selection.limit,
            "identity": self.meter.definitions["id_similarity"],
        }
        definitions = {
            name: f"{_AGAINST}: {text}" if name in QUALITY and text != "not measured" else text
            for name, text in self.meter.definitions.items()
        } | {"best_step": "none: an edit has no steps"}
        columns = self._own_columns()
        return TableSpec(columns, settings, {}, dict(self.config), self.model.metadata, definitions)

    def _own_columns(self) -> Columns:
        source = self._table.spec.columns
        return Columns(
            source.n_styles,
            self.latent_dtype or source.w_plus_dtype,
            turn_deg=source.turn_deg,
            edited=True,
            kept=self._kept(),
        )

    @property
    def _table(self) -> Table:
        return self.selection.table

    def _kept(self) -> tuple[tuple[str, str], ...]:
        kept = self._table.spec.columns.kept
        taken = [name for name, _ in kept if name.lower() in ("direction", "strength")]
        if taken:
            raise ConfigError(
                f"the table '{self._table.store.root}' has a field '{taken[0]}' of its input, and "
                "an edited table has a column of that name: edit it as images or a grid, or make "
                "the table without that field"
            )
        return kept

    def _write(self, writer: TableWriter, sources: Sequence[_Source], run: LocalRun) -> None:
        """Write the missing parts and delete orphaned files."""
        orphans = Orphans(writer.store)
        orphans.began = run.began
        count = len(self.edits.settings)
        shards = [shard for source in sources for shard in source.shards(self.edits)]
        try:
            states = list(writer.states(shards, orphans=orphans))
            run.planned(states)
            reader = _Reader(self._table, self.selection.where)
            for place, source in enumerate(sources):
                group = states[place * count : (place + 1) * count]
                for state in group:
                    orphans.add_input(state.shard)
                if not all(state.done for state in group):
                    self._write_shards(writer, group, reader.rows(source, self.part_size), run)
            orphans.remove(whole_input=False)  # a limit may leave shards of the source out
        finally:
            orphans.stop()

    def _write_shards(
        self,
        writer: TableWriter,
        states: Sequence[ShardState],  # one per setting
        batches: Iterator[_Rows],
        run: LocalRun,
    ) -> None:
        """Write the shards of all settings of one source shard, reading its rows once."""
        open_states = {index: state for index, state in enumerate(states) if not state.done}
        parts: dict[int, list[PartRecord]] = defaultdict(list)
        for state in open_states.values():
            writer.clear(state)
        for number, batch in enumerate(batches):
            missing = [index for index, state in open_states.items() if number not in state.parts]
            rows = self._rows(batch, missing) if missing else {}
            for index, state in open_states.items():
                part = state.parts.get(number)
                if part is None:
                    samples = len({row["key"] for row in rows[index]})
                    part = writer.write_part(
                        state.shard, number, samples=samples, latents=rows[index], rejects=[]
                    )
                    run.add(part, 0)
                parts[index].append(part)
        for index, state in open_states.items():
            writer.commit_shard(state.shard, parts[index])

    def _rows(self, batch: _Rows, settings: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Return the rows of a part for each of `settings`."""
        rows: dict[int, list[dict[str, Any]]] = {index: [] for index in settings}
        chosen = replace(
            self.edits, settings=tuple(self.edits.settings[index] for index in settings)
        )
        names = self._row_columns()
        step = max(1, _IMAGES_AT_ONCE // len(settings))
        for start in range(0, len(batch.codes), step):
            codes = batch.codes[start : start + step]
            edited = chosen.apply(codes)
            measured = self._measured(codes, edited)
            for face, setting in itertools.product(range(len(codes)), range(len(settings))):
                row = {
                    **dict.fromkeys(names),
                    **batch.facts[start + face],
                    "refined_from": batch.ids[start + face],
                    "method": METHOD,
                    "direction": list(self.edits.names),
                    "strength": list(chosen.settings[setting]),
                    "w_plus": edited[face, setting],
                    **{name: values[face, setting] for name, values in measured.items()},
                }
                rows[settings[setting]].append(row)
        return rows

    @torch.inference_mode()
    def _measured(self, codes: Floats, edited: Floats) -> dict[str, Any]:
        """Return each metric of edited codes [n, settings, n_styles, 512] as [n, settings]."""
        average = self.model.latent_avg
        images = self._images(np.concatenate([codes[:, None], edited], axis=1))
        tensor = torch.from_numpy(edited)
        target = images[:, 0].clamp(-1, 1)  # as reconstructions are
        measures = self.meter.measure(target, images[:, 1:], tensor, average.cpu())
        flat = tensor.flatten(0, 1)
        shape = edited.shape[:2]
        return {
            **{name: measures[name] for name in QUALITY},
            "w_plus_variance": w_plus_variance(flat).reshape(shape).numpy(),
            "w_avg_distance": w_avg_distance(flat, average.cpu()).reshape(shape).numpy(),
        }

    def _images(self, codes: Floats) -> torch.Tensor:
        """Render codes [n, m, n_styles, 512] as [n, m, 3, *input_size]."""
        flat = torch.from_numpy(codes).flatten(0, 1).to(self.model.latent_avg.device)
        size = self.model.input_size
        images = torch.stack([pooled(frame, size) for frame in render_each(self.model, flat)])
        return images.reshape(*codes.shape[:2], *images.shape[1:])

    def _row_columns(self) -> list[str]:
        names = self._own_columns().latents_schema().names
        return [name for name in names if name not in ("image_id", "shard")]


@dataclass(frozen=True)
class _Source:
    """Committed shard of the source, and the ids of its selected faces; None: by the condition."""

    record: ShardRecord
    ids: frozenset[str] | None

    def shards(self, edits: Edits) -> list[Shard]:
        """Return the shards of the edited table, one per setting; they change with this shard."""
        record = self.record
        state = [
            [record.fingerprint, record.etag, sorted(self.ids or ())],
            [part.latents_sha256 for part in record.parts],
        ]
        etag = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
        count = len(edits.settings)
        digits = len(str(count - 1))
        names = [
            record.shard + (f"-e{index:0{digits}d}" if count > 1 else "") for index in range(count)
        ]
        kind: Any = record.kind
        return [Shard(name, record.uri, kind, record.size, etag) for name in names]


@dataclass(frozen=True)
class _Rows:
    """Rows of the source: ids, the columns that an edit keeps, and codes [n, n_styles, 512]."""

    ids: list[str]
    facts: list[dict[str, Any]]
    codes: Floats


def _sources(selection: Selection) -> Iterator[_Source]:
    """Yield the committed shards that hold selected faces, or may hold some."""
    ids = _chosen_ids(selection)
    for shard_id in manifest_ids(selection.table.store):
        if ids is None or shard_id in ids:
            record = read_shard_record(selection.table.store, shard_id)
            yield _Source(record, None if ids is None else frozenset(ids[shard_id]))


def _chosen_ids(selection: Selection) -> dict[str, list[str]] | None:
    """Return the selected ids by shard, if a row alone does not say whether it is selected.

    That is so with a limit, and for a condition that reads other rows.
    """
    if selection.limit is None and _is_of_one_row(selection.where):
        return None
    ids: dict[str, list[str]] = defaultdict(list)
    for batch in selection.batches("image_id, shard", 4096):
        for row in batch.to_pylist():
            ids[row["shard"]].append(row["image_id"])
    return ids


def _is_of_one_row(where: str) -> bool:
    try:
        return not where or bool(condition(where, one_row=True))
    except RequestError:
        return False


class _Reader:
    """Reads the rows of one shard after another, opening only its files."""

    def __init__(self, table: Table, where: str) -> None:
        self._table, self._where = table, where
        self._kinds = dict(table.spec.columns.kept)
        turn = TURN_COLUMN if table.spec.columns.turn_deg else {}
        self._columns = [*SOURCE_COLUMNS, *turn, *ALIGNMENT_COLUMNS, *self._kinds]
        self._connection, self._files = connect(table.store)

    def rows(self, source: _Source, rows: int) -> Iterator[_Rows]:
        """Yield the selected rows of a shard, `rows` at a time, in the order of its files."""
        record = source.record
        names = [part_name(LATENTS, record.shard, part.part) for part in record.parts]
        schema = replace(self._table.spec.columns, w_plus_dtype="float32").latents_schema()
        create_view(self._connection, LATENTS, self._files, names, schema)
        columns = ", ".join('"' + name.replace('"', '""') + '"' for name in self._columns)
        where = ""
        if source.ids is None and self._where:
            where = f" WHERE {condition(self._where, one_row=True)}"
        ids = pa.array(source.ids or (), pa.string())
        waiting: list[pa.RecordBatch] = []
        for batch in self._batches(f"SELECT image_id, w_plus, {columns} FROM latents{where}", rows):
            if source.ids is not None:
                batch = batch.filter(pc.is_in(batch["image_id"], value_set=ids))
            waiting.append(batch)
            while sum(each.num_rows for each in waiting) >= rows:
                whole = pa.Table.from_batches(waiting).combine_chunks()
                yield self._rows(whole.slice(0, rows))
                waiting = whole.slice(rows).to_batches()
        if any(each.num_rows for each in waiting):
            yield self._rows(pa.Table.from_batches(waiting))

    def _batches(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        with self._files.failure_named("the query"):
            yield from self._connection.sql(query).to_arrow_reader(rows)

    def _rows(self, table: pa.Table) -> _Rows:
        (batch,) = table.combine_chunks().to_batches()
        names = self._columns
        arrays = [_plain(batch.column(name), self._kinds.get(name)) for name in names]
        facts = pa.RecordBatch.from_arrays(arrays, names=names).to_pylist()
        return _Rows(batch.column("image_id").to_pylist(), facts, codes_of(batch.column("w_plus")))


def _plain(column: pa.Array, kept: str | None) -> pa.Array:
    """Return a column in the form in which a kept field is written: dates and times as numbers."""
    if kept is None:
        return column
    stored = column.cast(arrow_type(kept))
    if pa.types.is_date(stored.type):
        return stored.cast(pa.int32())
    return stored.cast(pa.int64()) if pa.types.is_timestamp(stored.type) else stored
