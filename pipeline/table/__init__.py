"""The table of latents: schema, part files, manifests, writing and reading."""

from pipeline.table.card import card_text, is_card_current, kept_readme, write_card
from pipeline.table.description import (
    DESCRIPTION_NAME,
    TABLE_OUTPUT,
    Description,
    check_existing,
)
from pipeline.table.figures import Figures
from pipeline.table.index import INDEXED_AT_ONCE, ShardEntry
from pipeline.table.manifests import ShardManifest
from pipeline.table.part_index import PartIndex
from pipeline.table.parts import PartSummary
from pipeline.table.reader import Table, UnknownImageError, as_array, as_python, open_table
from pipeline.table.schema import (
    SCHEMA_VERSION,
    Columns,
    check_kept,
    image_id,
    latents_table,
    rejects_table,
)
from pipeline.table.starts import ShardStarts, check_condition, open_start, starts_schema
from pipeline.table.states import ShardState
from pipeline.table.strays import Strays
from pipeline.table.totals import Totals
from pipeline.table.writer import TableWriter, open_for_writing

__all__ = [
    "DESCRIPTION_NAME",
    "INDEXED_AT_ONCE",
    "SCHEMA_VERSION",
    "TABLE_OUTPUT",
    "Columns",
    "Description",
    "Figures",
    "PartIndex",
    "PartSummary",
    "ShardEntry",
    "ShardManifest",
    "ShardStarts",
    "ShardState",
    "Strays",
    "Table",
    "TableWriter",
    "Totals",
    "UnknownImageError",
    "as_array",
    "as_python",
    "card_text",
    "check_condition",
    "check_existing",
    "check_kept",
    "image_id",
    "is_card_current",
    "kept_readme",
    "latents_table",
    "open_for_writing",
    "open_start",
    "open_table",
    "rejects_table",
    "starts_schema",
    "write_card",
]
