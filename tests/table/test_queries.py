"""A query reads the table and nothing else, and writes nothing, on a disk and in a bucket."""

from __future__ import annotations

import gc
import itertools
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import duckdb
import pytest

from pipeline.errors import RequestError
from pipeline.interop.exporting import NamedSelection
from pipeline.reports.table_sheet import table_sheet
from pipeline.storage import Store
from pipeline.table import InitialCodes, Table, open_table
from pipeline.table.initial_codes import check_condition
from pipeline.table.queries import connect
from pipeline.table.schema import Columns
from pipeline.table.selection import Selection
from pipeline.table.statements import condition
from tests.table.rows import N_STYLES, shard, writer

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
    "SHOW ALL TABLES",
    "SUMMARIZE latents",
    "TABLE latents",
    "SELECT * FROM main.latents, MEMORY.main.Rejects LIMIT 1",
    'WITH a AS MATERIALIZED (FROM latents), "my b" AS (SELECT key FROM a) FROM "my b"',
    "SELECT row_number() OVER (PARTITION BY shard ORDER BY l2) AS n FROM latents QUALIFY n = 1",
    "SELECT lag(l2) OVER w FROM latents WINDOW w AS (ORDER BY key)",
    "SELECT unnest(w_plus)[1] AS first FROM latents",
    "SELECT list_sum(list_transform(w_plus[1], lambda x: x * x)) FROM latents",
    "SELECT [x + 1 for x in l2_per_step if x > 0.1], list_sort(l2_per_step) FROM latents",
    "SELECT list_cosine_similarity(a.w_plus[1], b.w_plus[1]) FROM latents a, latents b LIMIT 3",
    "SELECT l.key, u.v FROM latents l, unnest(l.l2_per_step) AS u(v)",
    "SELECT * FROM latents JOIN shards USING (shard) LEFT JOIN rejects USING (shard)",
    "SELECT * FROM latents SEMI JOIN shards USING (shard)",
    "SELECT median(psnr), quantile_cont(l2, [0.1, 0.9]), arg_min(key, l2) FROM latents",
    "SELECT string_agg(key, ',' ORDER BY key), list(l2), count(*) FILTER (l2 > 0) FROM latents",
    "SELECT shard, reason, count(*) FROM rejects GROUP BY ROLLUP (shard, reason) ORDER BY ALL",
    "SELECT regexp_extract(key, '(.)$'), key ILIKE 'A%', key SIMILAR TO 'a.*', key GLOB 'a*', "
    "upper(key) || 'x', position('a' in key), split_part(key, '/', 1), md5(key) FROM latents",
    "SELECT if(l2 > 0, 1, 2), nullif(l2, 0), coalesce(l2, 0), l2::DOUBLE, l2 BETWEEN 0 AND 1, "
    "width % 3, -l2, round(l2, 2), greatest(1, 2), TRY(1 / 0) FROM latents",
    "SELECT extract(year FROM now()), current_date + INTERVAL 1 day, date_trunc('day', now())",
    "SELECT {'a': key, 'b': l2}.a, MAP {'k': 1}['k'], to_json([1]) ->> '$[0]' FROM latents",
    "SELECT COLUMNS('l2.*') FROM latents",
    "SELECT * EXCLUDE (w_plus) REPLACE (l2 * 2 AS l2) FROM latents USING SAMPLE 2",
    "SELECT * FROM latents TABLESAMPLE reservoir(2) ORDER BY random() LIMIT 50%",
    "SELECT * FROM (UNPIVOT (SELECT key, l2, psnr FROM latents) ON l2, psnr INTO NAME n VALUE v)",
    "SELECT key FROM latents WHERE l2 <= ALL (SELECT l2 FROM latents) AND key IN (VALUES ('a'))",
    "SELECT * FROM range(3) CROSS JOIN generate_series(1, 2)",
)
HARMFUL = "COPY (SELECT 1) TO '{target}' (FORMAT parquet, USE_TMP_FILE false)"
# Functions that take a statement as a text.
CARRIERS = (
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql({sql}))",
    "SELECT * FROM latents WHERE (SELECT count(*) FROM "
    "json_execute_serialized_sql(json_serialize_sql({sql}))) > 0",
    "WITH a AS (FROM json_execute_serialized_sql(json_serialize_sql({sql}))) FROM a",
    "FROM query({sql})",
    "SELECT json_serialize_plan({sql})",
    "SELECT * FROM query_table('latents')",
    "FROM system.main.json_execute_serialized_sql(json_serialize_sql({sql}))",
    "SUMMARIZE FROM json_execute_serialized_sql(json_serialize_sql({sql}))",
    "SELECT [x FOR x IN (SELECT list(n) FROM query({sql}) t(n))]",
    "FROM latents ORDER BY (SELECT 1 FROM query({sql}))",
    "FROM (PIVOT (FROM query({sql})) ON key IN ('a') USING count(*))",
)

OTHER_STATEMENTS = (
    "PRAGMA database_list",
    "CALL pragma_version()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "RESET threads",
    "CREATE TABLE x AS SELECT 1",
    "CREATE OR REPLACE VIEW latents AS SELECT 1",
    "DROP VIEW latents",
    "DELETE FROM latents",
    "PREPARE x AS SELECT 1",
    "BEGIN",
    "CHECKPOINT",
    "SHOW DATABASES",
    "SHOW VARIABLES",
    "SELECT current_setting('secret_directory')",
    "SELECT getvariable('x')",
    "SELECT getenv('HOME')",
    "SELECT write_log('x')",
    "SELECT sleep_ms(1)",
    "SELECT pg_sleep(1)",
    "SELECT nextval('x')",
    "FROM duckdb_settings()",
    "FROM duckdb_secrets()",
    "FROM duckdb_views",
    "FROM pragma_database_size()",
    "FROM parquet_metadata('latents/s-0-00000.parquet')",
    "FROM arrow_scan(1, 2, 3)",
    "FROM seq_scan('latents')",
    "FROM histogram_values('/etc/passwd', x)",
    "FROM sniff_csv('/etc/passwd')",
    "SELECT x.parquet FROM x.parquet",
    'FROM \'/etc/passwd\', (WITH "/etc/passwd" AS (SELECT 1) FROM "/etc/passwd")',
    "SELECT 1 \0; SELECT 2",
)


def test_reading_queries_of_every_form_are_run(filled: str) -> None:
    table = open_table(filled)
    assert {query for query in READS if not table.arrow(query).num_rows} == set()


def test_queries_cannot_write_anything(filled: str, tmp_path: Path) -> None:
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


def test_functions_that_run_text_are_refused(filled: str) -> None:
    """A COPY inside a text would write into the table's folder."""
    table, store = open_table(filled), Store(filled)
    before = {name: store.get(name) for name in store.names()}
    targets = (store.uri("latents/s-0-00000.parquet"), "restyle-table://latents/x.parquet")
    for target, carrier in itertools.product(targets, CARRIERS):
        text = "'" + HARMFUL.format(target=target.replace("'", "''")).replace("'", "''") + "'"
        with pytest.raises(RequestError, match="is not one that a query may call"):
            table.arrow(carrier.format(sql=text))
    assert {name: store.get(name) for name in store.names()} == before


def test_queries_beyond_the_views_are_refused(filled: str) -> None:
    table = open_table(filled)
    for query in OTHER_STATEMENTS:
        with pytest.raises(RequestError, match="the query failed") as error:
            table.arrow(query)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "view", ["sqlite_master", "DuckDB_Views", "duckdb_databases", "pragma_database_list"]
)
def test_with_cannot_name_a_catalog_view(filled: str, view: str) -> None:
    table = open_table(filled)
    for query in (
        f"WITH x AS (WITH {view} AS (SELECT 1) FROM {view}) FROM {view}",
        f"FROM {view}, (WITH {view} AS (SELECT 1) FROM {view})",
        f"WITH a AS (FROM {view}), {view} AS (SELECT 1) FROM a",
        f"WITH {view} AS (SELECT 1) FROM main.{view}",
        f"WITH RECURSIVE {view} AS (FROM {view} UNION SELECT 1) FROM {view}",
    ):
        with pytest.raises(RequestError, match="the query failed: WITH names a table"):
            table.arrow(query)
    for query in (
        "WITH tables AS (FROM latents) FROM tables",
        "WITH latents AS (VALUES (1)) FROM latents",
    ):
        assert table.arrow(query).num_rows


def test_a_date_beyond_python_is_refused_in_a_frame(filled: str) -> None:
    query = "SELECT 1 AS a, 'infinity'::DATE AS b"
    with pytest.raises(RequestError, match=r"column 'b' has a value .* CAST"):
        open_table(filled).sql(query)
    assert open_table(filled).arrow(query).num_rows == 1


def test_a_function_with_capitals_is_called(filled: str) -> None:
    for name in ("formatReadableSize", "formatreadablesize", "FORMATREADABLEDECIMALSIZE"):
        assert "5 bytes" in str(open_table(filled).sql(f"SELECT {name}(5)"))


@pytest.mark.parametrize(
    "query",
    [
        "PIVOT rejects ON reason USING count(*)",
        "FROM (PIVOT rejects ON reason USING count(*))",
        "WITH a AS (PIVOT rejects ON reason USING count(*)) FROM a",
    ],
)
def test_a_pivot_without_values_is_explained(filled: str, query: str) -> None:
    with pytest.raises(RequestError, match=r"PIVOT .* list the values"):
        open_table(filled).arrow(query)
    listed = query.replace("ON reason", "ON reason IN ('no_face')")
    assert open_table(filled).arrow(listed).num_rows


def test_an_unknown_function_gets_a_suggestion(filled: str) -> None:
    with pytest.raises(RequestError, match=r"the function 'lowr' .*; did you mean 'lower'\?"):
        open_table(filled).sql("SELECT lowr(key) FROM latents")


def test_a_deeply_nested_query_is_refused(filled: str) -> None:
    with pytest.raises(RequestError, match="the query failed"):
        open_table(filled).sql(f"SELECT {'(' * 5000}1{')' * 5000}")


def test_the_connection_itself_opens_nothing_for_writing(filled: str, tmp_path: Path) -> None:
    """The connection is safe even without the check of the statement."""
    store = Store(filled)
    before = {name: store.get(name) for name in store.names()}
    table = open_table(filled)
    connection, _ = table._database
    part = store.names("latents/")[0]
    for target in (store.uri(part), f"restyle-table://{part}", f"{tmp_path}/x.csv"):
        for query in (HARMFUL, "EXPORT DATABASE '{target}'"):
            with pytest.raises((duckdb.Error, PermissionError)):
                connection.execute(query.format(target=target.replace("'", "''")))
    for query in ("FROM read_text('restyle-table://_table.json')", "INSTALL httpfs", "LOAD httpfs"):
        with pytest.raises((duckdb.Error, FileNotFoundError)):
            connection.execute(query).fetchall()
    assert {name: store.get(name) for name in store.names()} == before
    assert table.sql("SELECT 1 FROM latents").shape == (8, 1)


def test_spill_files_are_private_and_removed(filled: str) -> None:
    connection, files = connect(Store(filled))
    (folder,) = connection.execute("SELECT current_setting('temp_directory')").fetchone() or ()
    assert folder == str(files.spill)
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert Path.cwd() not in Path(folder).parents
    connection.close()
    del files
    gc.collect()
    assert not Path(folder).exists()


def test_each_thread_has_its_own_file_position(tmp_path: Path) -> None:
    """DuckDB seeks and reads in two calls; another thread may seek in between."""
    store = Store(str(tmp_path))
    store.put("x", bytes(range(200)))
    _, files = connect(store)
    barrier = Barrier(8)
    with closing(files.open(files.add("x"))) as file, ThreadPoolExecutor(8) as pool:

        def read(position: int) -> bytes:
            file.seek(position)
            barrier.wait()
            return bytes(file.read(2))

        contents = list(pool.map(read, range(0, 160, 20)))
    assert contents == [bytes([position, position + 1]) for position in range(0, 160, 20)]


NO_CONDITIONS = (
    "true) FROM latents, (SELECT 1",
    "true) --",
    "true) OR (true",
    "true--\n) OR (true",
    "true /*",
    "true; SELECT 1",
    "true ORDER BY l2",
    "true LIMIT 1",
    "true UNION ALL SELECT 1",
    "true GROUP BY 1",
    "true WINDOW w AS (ORDER BY l2)",
    "true, true",
    " ",
    "true\0",
    "(SELECT count(*) FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))) = 1",
    "(SELECT count(*) FROM read_text('/etc/passwd')) = 1",
    "current_setting('threads') = 1",
    "'{}",
)


def _of_export(table: Table, where: str) -> object:
    return list(NamedSelection(table, where).named_rows())


def _of_counts(table: Table, where: str) -> object:
    return NamedSelection(table, where).counts()


def _of_starts(table: Table, where: str) -> object:
    return InitialCodes(table.store.root, shard("s-0"), where).keys


CONDITIONS: list[Callable[[Table, str], object]] = [
    *(_of_export, _of_counts, _of_starts, check_condition),
    lambda table, where: table_sheet(Selection(table, where)),
]


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory: pytest.TempPathFactory) -> Table:
    root = tmp_path_factory.mktemp("where")
    table = writer(root, columns=Columns(N_STYLES, all_steps=True, aligned_jpeg=True))
    table.commit_shard(shard(), [table.write_part(shard(), 0, samples=0, latents=[], rejects=[])])
    return open_table(str(root))


@pytest.mark.parametrize("run", CONDITIONS)
def test_a_condition_is_one_condition(
    with_pictures: Table, run: Callable[[Table, str], object]
) -> None:
    for where in NO_CONDITIONS:
        with pytest.raises(RequestError, match=r"^where "):
            run(with_pictures, where)


@pytest.mark.parametrize(
    "where",
    [
        "true",
        "l2 < 1 -- all",
        "key = 'select ; ) --'",
        "key <> $$)$$ /* x */",
        "key = '{}' OR l2 < 1",
    ],
)
def test_a_condition_with_odd_text_selects_rows(filled: str, where: str) -> None:
    check_condition(open_table(filled), where)
    assert NamedSelection(open_table(filled), where).counts()[0] in (0, 8)
    assert condition(where).startswith(f"({where}")


def test_a_condition_may_compare_with_other_rows(filled: str) -> None:
    chosen = NamedSelection(
        open_table(filled), "l2 = (SELECT min(l2) FROM latents) AND shard = 's-0'"
    )
    assert chosen.counts()[0] == 4
    with pytest.raises(RequestError, match="condition on one row, without a SELECT"):
        check_condition(open_table(filled), "l2 = (FROM (VALUES (1)))")


@pytest.mark.parametrize(
    "source",
    [
        "read_text('/etc/hostname')",
        "read_csv('/etc/passwd')",
        "glob('/etc/*')",
        "'/etc/passwd'",
        "read_text('restyle-table://../secret.txt')",
        "read_text('{secret}')",
    ],
)
def test_files_outside_the_table_cannot_be_read(filled: str, source: str) -> None:
    folder = filled.rsplit("/", 1)[0]
    Store(folder).put("secret.txt", b"hunter2")
    secret = Store(folder).uri("secret.txt").replace("'", "''")
    with pytest.raises(RequestError, match="the query failed") as error:
        open_table(filled).arrow(f"SELECT * FROM {source.format(secret=secret)}")
    assert "hunter2" not in str(error.value)


def test_a_second_statement_is_refused(filled: str) -> None:
    """DuckDB returns only the rows of the last statement."""
    with pytest.raises(RequestError, match="it has 2 statements"):
        open_table(filled).sql("SELECT 1; SELECT 2")
    assert open_table(filled).sql("SELECT 1;").shape == (1, 1)


def test_a_query_cannot_unlock_the_connection(filled: str) -> None:
    table = open_table(filled)
    table.arrow("SELECT 1")
    connection, _ = table._database
    for setting in ("enable_external_access = true", "lock_configuration = false"):
        with pytest.raises(RequestError):
            table.arrow(f"SET {setting}")
        with pytest.raises(duckdb.Error, match="Cannot change"):
            connection.execute(f"SET {setting}")
