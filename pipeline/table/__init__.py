"""The table of latents: schema, part files, manifests, writing and reading."""

from pipeline.table.description import Description, check_same, read_description
from pipeline.table.manifests import ShardManifest
from pipeline.table.parts import PartSummary
from pipeline.table.schema import SCHEMA_VERSION, Columns, image_id
from pipeline.table.writer import ShardState, TableWriter, open_for_writing

__all__ = [
    "SCHEMA_VERSION",
    "Columns",
    "Description",
    "PartSummary",
    "ShardManifest",
    "ShardState",
    "TableWriter",
    "check_same",
    "image_id",
    "open_for_writing",
    "read_description",
]
