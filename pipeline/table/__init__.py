"""Table of latents: schema, part files, manifests, writing and reading."""

from pipeline.table.card import card_text, is_card_current, kept_readme, write_card
from pipeline.table.cleanup import Orphans
from pipeline.table.forgetting.forgotten import check_finished
from pipeline.table.initial_codes import InitialCodes, check_condition, open_initial_table
from pipeline.table.part_index import PartIndex
from pipeline.table.parts import PartRecord
from pipeline.table.reader import Table, UnknownImageError, as_python, open_table
from pipeline.table.resume import ShardState
from pipeline.table.runs import RunRecord
from pipeline.table.schema import Columns, check_kept, image_id
from pipeline.table.shard_index import table_stats
from pipeline.table.shard_records import ShardRecord
from pipeline.table.spec import SPEC_NAME, TABLE_OUTPUT, TableSpec, check_existing
from pipeline.table.stats import Counts
from pipeline.table.writer import TableWriter, open_for_writing

__all__ = [
    "SPEC_NAME",
    "TABLE_OUTPUT",
    "Columns",
    "Counts",
    "InitialCodes",
    "Orphans",
    "PartIndex",
    "PartRecord",
    "RunRecord",
    "ShardRecord",
    "ShardState",
    "Table",
    "TableSpec",
    "TableWriter",
    "UnknownImageError",
    "as_python",
    "card_text",
    "check_condition",
    "check_existing",
    "check_finished",
    "check_kept",
    "image_id",
    "is_card_current",
    "kept_readme",
    "open_for_writing",
    "open_initial_table",
    "open_table",
    "table_stats",
    "write_card",
]
