"""Codes of a table as initial codes of another run, looked up for each sample of a shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, InputError, TableError
from pipeline.storage import Shard
from pipeline.table.parts import LATENTS, part_name
from pipeline.table.queries import connect, create_view
from pipeline.table.reader import Table, open_table
from pipeline.table.schema import code_type, codes_array
from pipeline.table.shard_records import ShardRecord, manifest_name, read_shard_record
from pipeline.table.statements import condition


def initial_codes_schema(n_styles: int) -> pa.Schema:
    """Return the schema of the initial codes of a part: `image_id` and `w_plus`, float32."""
    return pa.schema([("image_id", pa.string()), ("w_plus", code_type(pa.float32(), n_styles))])


def open_initial_table(uri: str) -> Table:
    """Open the table that holds the initial codes; `ConfigError` if `uri` is not a table."""
    try:
        return open_table(uri)
    except (InputError, TableError) as error:
        raise ConfigError(f"cannot start from codes: {error}") from error


def check_condition(table: Table, where: str) -> None:
    """Raise `RequestError` unless `where` is an SQL condition on one row of `table`'s latents."""
    table.arrow(f"SELECT image_id FROM latents WHERE {condition(where, one_row=True)} LIMIT 0")


class InitialCodes:
    """Codes of one committed shard of the table at `uri`, of all faces or those that match `where`.

    Holds the ids of the selected faces; `of` reads the codes.
    """

    def __init__(self, uri: str, shard: Shard, where: str | None = None) -> None:
        """Raise `TableError` unless the shard is committed in its present state."""
        self.table = open_table(uri)
        record = self._checked_shard(uri, shard)
        # Key -> image ids with the names of their files.
        self._faces: dict[str, list[tuple[str, str]]] = defaultdict(list)
        names = [part_name(LATENTS, record.shard, part.part) for part in record.parts]
        self._choose(names, where or "true")

    def _checked_shard(self, uri: str, shard: Shard) -> ShardRecord:
        """Return the shard's record; `TableError` if it was made from other data than `shard`.

        A shard of the same id may hold other images, and codes would go to the wrong faces.
        """
        name = f"shard '{shard.shard_id}'"
        if not self.table.store.exists(manifest_name(shard.shard_id)):
            raise TableError(f"the table '{uri}' has not finished {name}: run its own job first")
        record = read_shard_record(self.table.store, shard.shard_id)
        if record.uri != shard.source:
            raise TableError(
                f"the table '{uri}' has {name} from '{record.uri}', but this run reads it from "
                f"'{shard.source}': give the input that the table was made from"
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
        with closing(files), closing(connection):
            for name in names:
                create_view(connection, LATENTS, files, [name], columns.latents_schema())
                with files.failure_named(f"where {where!r}"):
                    rows = connection.execute(query).fetchall()
                for image, key in rows:
                    self._faces[key].append((image, name))

    @property
    def keys(self) -> Collection[str]:
        """Keys of the samples that have a selected face."""
        return self._faces.keys()

    def of(self, keys: Sequence[str]) -> pa.Table:
        """Return the codes of all selected faces of the samples `keys` (`initial_codes_schema`)."""
        faces = [face for key in keys for face in self._faces.get(key, ())]
        images_by_file: dict[str, set[str]] = defaultdict(set)
        for image, name in faces:
            images_by_file[name].add(image)
        codes_by_id: dict[str, np.ndarray] = {}
        for name, images in images_by_file.items():
            codes_by_id |= self.table.codes_in(name, images)
        ids = [image for image, _ in faces]
        schema = initial_codes_schema(self.table.spec.columns.n_styles)
        codes = codes_array([codes_by_id[image][None] for image in ids], schema.types[1])
        return pa.Table.from_arrays([pa.array(ids, pa.string()), codes], schema=schema)
