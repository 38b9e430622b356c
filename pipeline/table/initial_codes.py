"""Codes of a table as starting points: of one shard, looked up as its samples are read again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, InputError, RequestError, TableError
from pipeline.storage import Shard, one_line
from pipeline.table.parts import LATENTS, part_name
from pipeline.table.queries import connect, create_view
from pipeline.table.reader import Table, open_table
from pipeline.table.schema import STYLE_DIM
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.statements import condition


def initial_codes_schema(n_styles: int) -> pa.Schema:
    """Columns of the codes that travel with a part: `image_id` and `w_plus`, float32."""
    code = pa.list_(pa.list_(pa.float32(), STYLE_DIM), n_styles)
    return pa.schema([("image_id", pa.string()), ("w_plus", code)])


def open_initial_table(uri: str) -> Table:
    """The table that codes are to start from; `ConfigError` if there is none at `uri`."""
    try:
        return open_table(uri)
    except (InputError, TableError) as error:
        raise ConfigError(f"cannot start from codes: {error}") from error


def check_condition(table: Table, where: str) -> None:
    """Raise `RequestError` if `where` is no SQL condition on a row of `table`'s latents."""
    table.arrow(f"SELECT image_id FROM latents WHERE {condition(where, one_row=True)} LIMIT 0")


class InitialCodes:
    """The codes of one committed shard of the table at `uri`, or those that `where` chooses.

    Holds the ids of the shard's chosen faces; codes are read when they are asked for.
    """

    def __init__(self, uri: str, shard: Shard, where: str | None = None) -> None:
        """Raises `TableError` where the table has not finished the shard as it stands."""
        self.table = open_table(uri)
        record = self._checked_shard(uri, shard)
        self.n_styles = self.table.spec.columns.n_styles
        self._files: dict[str, str] = {}  # image_id -> name of its file
        self._faces: dict[str, list[str]] = defaultdict(list)  # key -> image_ids
        names = [part_name(LATENTS, record.shard, part.part) for part in record.parts]
        self._choose(names, where or "true")

    def _checked_shard(self, uri: str, shard: Shard) -> ShardRecord:
        """A shard of the same id may hold other images: their codes would not be missed."""
        name = f"shard '{shard.shard_id}'"
        if not self.table.store.exists(manifest_name(shard.shard_id)):
            raise TableError(f"the table '{uri}' has not finished {name}: run its own job first")
        record = read_shard_record(self.table.store, shard.shard_id)
        if record.uri != shard.source:
            raise TableError(
                f"the table '{uri}' has {name} from '{record.uri}', and it is to be read from "
                f"'{shard.source}'"
            )
        if (record.etag, record.size) != (shard.etag, shard.size):
            raise TableError(
                f"{name} changed since the table '{uri}' was made from it (etag '{record.etag}' "
                f"then, '{shard.etag}' when it was listed): run its own job first"
            )
        return record

    def _choose(self, names: Sequence[str], where: str) -> None:
        store, columns = self.table.store, self.table.spec.columns
        query = f"SELECT image_id, key FROM latents WHERE {condition(where, one_row=True)}"
        connection, files = connect(store)
        for name in names:
            create_view(connection, LATENTS, files, [name], columns.latents_schema())
            try:
                rows = connection.execute(query).fetchall()
            except duckdb.Error as error:
                files.raise_failure()
                raise RequestError(f"where {where!r} failed: {one_line(error)}") from error
            for image, key in rows:
                self._files[image] = name
                self._faces[key].append(image)
        connection.close()
        files.close()

    @property
    def keys(self) -> Collection[str]:
        """Keys of the samples that have a chosen face."""
        return self._faces.keys()

    def of(self, keys: Sequence[str]) -> pa.Table:
        """The codes of all chosen faces of the samples `keys`, as `initial_codes_schema` has it."""
        ids = [image for key in keys for image in self._faces.get(key, ())]
        wanted: dict[str, set[str]] = defaultdict(set)
        for image in ids:
            wanted[self._files[image]].add(image)
        found: dict[str, np.ndarray] = {}
        for name, images in wanted.items():
            found |= self.table.codes_in(name, images)
        schema = initial_codes_schema(self.n_styles)
        numbers = pa.array(
            np.concatenate([np.empty((0,), np.float32), *(found[image].ravel() for image in ids)])
        )
        kind = schema.field("w_plus").type
        rows = pa.FixedSizeListArray.from_arrays(numbers, type=kind.value_type)
        codes = pa.FixedSizeListArray.from_arrays(rows, type=kind)
        return pa.Table.from_arrays([pa.array(ids, pa.string()), codes], schema=schema)
