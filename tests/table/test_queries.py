"""A query reads the table and nothing else, and writes nothing, on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from pipeline.errors import RequestError
from pipeline.storage import Store
from pipeline.table import open_table

READS = (
    "SELECT key FROM latents",
    "FROM latents",
    "WITH few AS (SELECT * FROM latents LIMIT 2) SELECT count(*) FROM few",
    "DESCRIBE latents",
    "SUMMARIZE SELECT l2 FROM latents",
    "SHOW TABLES",
    "VALUES (1)",
    "SELECT * FROM (PIVOT (SELECT key, l2 FROM latents) ON key IN ('a') USING avg(l2))",
    "SELECT l2 FROM latents UNION ALL SELECT samples FROM shards",
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT * FROM t",
    'SELECT \'"type":"COPY_QUERY_NODE"\' AS text',
)


@pytest.mark.parametrize("query", READS)
def test_every_form_of_a_query_that_reads_is_run(filled: str, query: str) -> None:
    assert open_table(filled).arrow(query).num_rows > 0


def test_neither_the_table_nor_anything_else_is_written(filled: str, tmp_path: Path) -> None:
    table, before = open_table(filled), Store(filled).names()
    inside = table.store.uri("x.csv").replace("'", "''")
    for target in (f"{tmp_path}/x.csv", inside, "restyle-table://x.csv"):
        for query in (
            f"COPY (SELECT 1) TO '{target}'",
            f"WITH x AS (COPY (SELECT 1) TO '{target}') SELECT * FROM x",
            f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{target}'",
            f"SELECT 1; COPY (SELECT 1) TO '{target}'",
            f"COPY (PIVOT latents ON key USING avg(l2)) TO '{target}'",
            f"ATTACH '{target}'",
            f"EXPORT DATABASE '{target}'",
        ):
            with pytest.raises(RequestError, match="only queries that read are run"):
                table.arrow(query)
            with pytest.raises(RequestError, match="only queries that read are run"):
                list(table.batches(query, 10))
    assert Store(filled).names() == before
    assert not list(tmp_path.rglob("x.csv"))


@pytest.mark.parametrize(
    "source",
    [
        "read_text('/etc/hostname')",
        "read_csv('/etc/passwd')",
        "glob('/etc/*')",
        "'/etc/passwd'",
        "read_text('restyle-table://../secret.txt')",
        "read_text('{beside}')",
    ],
)
def test_no_file_but_the_tables_own_is_read(filled: str, source: str) -> None:
    folder = filled.rsplit("/", 1)[0]
    Store(folder).put("secret.txt", b"hunter2")
    beside = Store(folder).uri("secret.txt").replace("'", "''")
    with pytest.raises(RequestError, match="the query failed") as error:
        open_table(filled).arrow(f"SELECT * FROM {source.format(beside=beside)}")
    assert "hunter2" not in str(error.value)


def test_several_queries_are_refused(filled: str) -> None:
    """The rows of all but the last would be lost."""
    with pytest.raises(RequestError, match="it is several"):
        open_table(filled).sql("SELECT 1; SELECT 2")
    assert open_table(filled).sql("SELECT 1;").shape == (1, 1)


def test_the_lock_cannot_be_taken_off(filled: str) -> None:
    table = open_table(filled)
    table.arrow("SELECT 1")
    connection, _ = table._database
    for setting in ("enable_external_access = true", "lock_configuration = false"):
        with pytest.raises(RequestError):
            table.arrow(f"SET {setting}")
        with pytest.raises(duckdb.Error, match="Cannot change"):
            connection.execute(f"SET {setting}")
