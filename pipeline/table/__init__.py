"""Table of latents: schema, part files, manifests, writing and reading."""

from pipeline.table.initial_codes import InitialCodes, open_initial_table
from pipeline.table.parts import PartRecord
from pipeline.table.reader import Table, open_table
from pipeline.table.runs import RunRecord
from pipeline.table.schema import Columns, image_id
from pipeline.table.shard_records import ShardRecord
from pipeline.table.spec import SPEC_NAME, TABLE_OUTPUT, TableSpec
from pipeline.table.stats import Counts
from pipeline.table.writer import TableWriter, open_for_writing

__all__ = [
    "SPEC_NAME",
    "TABLE_OUTPUT",
    "Columns",
    "Counts",
    "InitialCodes",
    "PartRecord",
    "RunRecord",
    "ShardRecord",
    "Table",
    "TableSpec",
    "TableWriter",
    "image_id",
    "open_for_writing",
    "open_initial_table",
    "open_table",
]
