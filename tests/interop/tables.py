"""Tables with given rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.table import open_table
from tests.table.rows import shard, writer


def table_of(root: Path, *rows: dict[str, Any], **changes: Any) -> Any:
    """Write a table of one shard with these rows."""
    table, first = writer(root, **changes), shard("s-0")
    keys = {row["key"] for row in rows}
    part = table.write_part(first, 0, samples=len(keys), latents=list(rows), rejects=[])
    table.commit_shard(first, [part])
    return open_table(str(root))
