"""Reading of the table that an edit changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.editing.edited_table import _Reader, _sources
from pipeline.errors import RequestError
from pipeline.table import open_table
from pipeline.table.selection import Selection
from tests.table.rows import damage_codes, shard, write_shard, writer


def test_a_damaged_source_gives_one_line_of_error(tmp_path: Path) -> None:
    made = writer(tmp_path)
    write_shard(made, shard())
    damage_codes(made.store, "latents/s-0-00000.parquet")
    table = open_table(str(tmp_path))
    (source,) = _sources(Selection(table))
    with pytest.raises(RequestError, match="the query failed: "):
        list(_Reader(table, "").rows(source, 4))
