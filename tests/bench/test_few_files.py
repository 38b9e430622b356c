"""Check that the benchmark of few files exports a complete table and reads the right codes."""

from __future__ import annotations

from pathlib import Path

from pipeline.table import open_table
from tests.bench.few_files import PART, export, read, write_table


def test_codes_of_the_export_are_those_of_their_ids(tmp_path: Path) -> None:
    root, output = str(tmp_path / "table"), str(tmp_path / "out")
    write_table(Path(root), PART + 1, 2)
    assert open_table(root).verify()["faces"] == 2 * PART
    assert export(root, output, shuffled=True)["files"] == 1
    ids = open_table(root).arrow("SELECT image_id FROM latents")["image_id"].combine_chunks()
    assert {"codes_seconds", "duckdb_drawn_cpu"} <= set(read(output, ids))
