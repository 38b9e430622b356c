"""Accept only SQL that reads a table's views: statements and conditions without side effects.

DuckDB parses the text and returns its syntax tree, which names the kind of every node, every table
and every function. Each name must be in a list of this module. So spelling and quoting do not
matter, and features of later DuckDB releases are refused until they are listed here.
"""

from __future__ import annotations

import atexit
import difflib
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import duckdb

from pipeline.errors import RequestError
from pipeline.storage import one_line

VIEWS = ("latents", "rejects", "shards", "runs")
# DuckDB raises UnicodeDecodeError for a message with text of a file that is not UTF-8.
QUERY_ERRORS = (duckdb.Error, UnicodeDecodeError)

_NOT_READING = "only queries that read are run (SELECT, FROM, ...)"
_PIVOT_LISTS = (
    "a PIVOT that looks up its columns first is several statements, and "
    f"{_NOT_READING}: list the values, as in PIVOT rejects ON reason IN ('no_face') USING count(*)"
)
_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_SOURCES = {
    *("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST"),
    *("SHOW_REF", "PIVOT"),
}
_EXPRESSIONS = {
    *("STAR", "CONSTANT", "COLUMN_REF", "POSITIONAL_REFERENCE", "PARAMETER", "TYPE", "DEFAULT"),
    *("FUNCTION", "WINDOW", "LAMBDA", "LAMBDA_REF", "SUBQUERY", "OPERATOR", "COMPARISON"),
    *("CONJUNCTION", "BETWEEN", "CASE", "CAST", "COLLATE"),
}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "repeat", "json_each", "json_tree"}
_SHOWN = {'"tables"', "__show_tables_expanded"}
# A name without dot, slash or colon, which DuckDB cannot interpret as a file.
_PLAIN_NAME = re.compile(r"[\w -]+")
_FRAME_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# Views of an empty table read these (`queries.create_view`).
_EMPTY_SOURCES = tuple(f"{view}_without_rows" for view in VIEWS)

# DuckDB's built-in functions without side effects: the same arguments give the same value.
_PURE_FUNCTIONS = """
    SELECT DISTINCT lower(function_name) FROM duckdb_functions()
    WHERE function_type IN ('scalar', 'aggregate', 'window') AND stability = 'CONSISTENT'
      AND NOT starts_with(function_name, '__internal')
      -- These parse a text as a query; planning it reads its files.
      AND NOT regexp_full_match(function_name, 'json_(de)?serialize_(sql|plan)')
"""
# DuckDB's internal views, which describe the connection: those that a plain name reaches, because
# its search path holds their schemas.
_CATALOG = """
    SELECT DISTINCT lower(view_name) FROM duckdb_views()
    WHERE internal AND schema_name <> 'information_schema'
"""
# SQL's reserved words, which a query would have to put in quotes.
_RESERVED = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
_ALSO_HARMLESS = {
    *("unnest", "position", "random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error"),
    *("now", "today", "current_date", "get_current_time", "get_current_timestamp"),
    # Macros that expand to the functions above.
    *("ago", "array_append", "array_pop_back", "array_pop_front", "array_prepend"),
    *("array_push_back", "array_push_front", "array_reverse", "array_to_string"),
    *("array_to_string_comma_default", "assert_true", "date_add", "days_in_month", "fdiv", "fmod"),
    *("generate_subscripts", "geomean", "geometric_mean", "if", "json", "json_group_array"),
    *("json_group_object", "json_group_structure", "list_any_value", "list_append"),
    *("list_approx_count_distinct", "list_avg", "list_bit_and", "list_bit_or", "list_bit_xor"),
    *("list_bool_and", "list_bool_or", "list_count", "list_entropy", "list_first"),
    *("list_histogram", "list_kurtosis", "list_kurtosis_pop", "list_last", "list_mad", "list_max"),
    *("list_median", "list_min", "list_mode", "list_prepend", "list_product", "list_reverse"),
    *("list_sem", "list_skewness", "list_stddev_pop", "list_stddev_samp", "list_string_agg"),
    *("list_sum", "list_var_pop", "list_var_samp", "map_contains_entry", "map_contains_value"),
    *("md5_number_lower", "md5_number_upper", "nullif", "regexp_split_to_table", "split_part"),
    *("wavg", "weighted_avg"),
}
_OWN_QUERY = re.compile(r" LINE \d+: SELECT 1 WHERE.*")  # around a condition, in DuckDB's errors


def check_frame_names(names: Iterable[str]) -> None:
    """Raise `RequestError` if a frame has a name that SQL cannot use, or that has a meaning.

    Such names are those of the views, of DuckDB's internal views and of SQL's reserved words.
    """
    lower: set[str] = set()
    for name in names:
        if not _FRAME_NAME.fullmatch(name):
            raise RequestError(
                f"'{name}' cannot be the name of a frame: use letters, digits and underscores"
            )
        if name.lower() in {*VIEWS, *_EMPTY_SOURCES, *lower} | _names(_CATALOG) | _names(_RESERVED):
            raise RequestError(f"the name '{name}' of a frame is taken: choose another name")
        lower.add(name.lower())


def check_reads(query: str, frames: Collection[str] = ()) -> None:
    """Raise `RequestError` unless a query is one statement that only reads the views and `frames`.

    Raises DuckDB's error for invalid SQL.
    """
    statements = _parsed(query)
    if len(statements) > 1:
        raise RequestError(
            f"the query failed: it has {len(statements)} statements; give one at a time"
        )
    try:
        _check(statements, frames)
    except RequestError as error:
        raise RequestError(f"the query failed: {error}") from error


def condition(where: str, *, one_row: bool = False) -> str:
    """Return `where` as an SQL expression in parentheses, safe to insert into a query.

    Raises `RequestError` if it is not exactly one condition (for example if it has a comma, ORDER
    BY, a closing parenthesis or a second statement), or does anything but read the views; with
    `one_row` also if it reads other rows than the one that it is evaluated on.
    """
    with _named_in_errors(f"where {where!r}"):
        expression = _expression(where)
        _check(expression)
    if one_row and any(node.get("class") == "SUBQUERY" for node in _nodes(expression)):
        raise RequestError(f"where must be a condition on one row, without a SELECT: {where!r}")
    return f"({where}\n)"


def _expression(where: str) -> dict[str, Any]:
    """Return the tree of a condition."""
    statements = _parsed(f"SELECT 1 WHERE {where}\n")
    node = statements[0]["node"]
    expression: dict[str, Any] | None = node.get("where_clause")
    is_alone = len(statements) == 1 and {**node, "where_clause": None} == _select_tree()
    if not is_alone or expression is None:
        raise RequestError("it must be exactly one condition, without other clauses")
    _parsed(f"SELECT 1 WHERE ({where}\n)")  # refuses a clause that the tree does not contain
    return expression


def ordering(order: str) -> str:
    """Return `order` as the text of an ORDER BY clause (`lpips DESC, key`) for a query on rows.

    Raises `RequestError` if it is anything but a list of expressions with ASC or DESC, or does
    anything but read the views.
    """
    with _named_in_errors(f"order {order!r}"):
        _check(_order(order))
    return f"{order}\n"


@contextmanager
def _named_in_errors(clause: str) -> Iterator[None]:
    """Put the text of a clause before the errors about it."""
    try:
        yield
    except QUERY_ERRORS as error:
        raise RequestError(f"{clause} failed: {_OWN_QUERY.sub('', one_line(error))}") from error
    except RequestError as error:
        raise RequestError(f"{clause} failed: {error}") from error


def _order(order: str) -> list[Any]:
    """Return the trees of the expressions of an ORDER BY list."""
    statements = _parsed(f"SELECT 1 WHERE true ORDER BY {order}\n")
    node = statements[0]["node"]
    plain = {**node, "where_clause": None, "modifiers": []} == _select_tree()
    kinds = [modifier["type"] for modifier in node["modifiers"]]
    if len(statements) != 1 or not plain or kinds != ["ORDER_MODIFIER"]:
        raise RequestError("it must be a list of columns or expressions, each with ASC or DESC")
    orders: list[Any] = node["modifiers"][0]["orders"]
    return orders


def _parsed(query: str) -> list[Any]:
    """Return the trees of the statements; `RequestError` unless each of them is a SELECT."""
    if "\0" in query:
        raise RequestError("the query failed: it contains a null character")
    # Python decodes arguments of the command line that are not UTF-8 to surrogates.
    if any("\ud800" <= char <= "\udfff" for char in query):
        raise RequestError("the query failed: it is not UTF-8 text")
    extracted = duckdb.extract_statements(query)  # its error shows where the text is wrong
    with _PARSING:
        ((text,),) = _parser().execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise RequestError("the query failed: it is nested too deeply") from error
    if tree["error"]:
        is_multiple = any(each.type == duckdb.StatementType.MULTI for each in extracted)
        if is_multiple and "pivot" in query.lower():
            raise RequestError(f"the query failed: {_PIVOT_LISTS}")
        raise RequestError(f"the query failed: {_NOT_READING}")
    statements: list[Any] = tree["statements"]
    return statements


_PARSING = threading.Lock()  # of the connection of `_parser`


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """Return the connection for parsing, opened at first use."""
    atexit.register(_parser.cache_clear)  # otherwise the binding reports a leak at exit
    settings = {"autoload_known_extensions": False, "enable_external_access": False}
    return duckdb.connect(config={**settings, "threads": 1})


@cache
def _names(query: str) -> frozenset[str]:
    """Return the names that a query of DuckDB's catalog gives."""
    with _PARSING:
        return frozenset(name for (name,) in _parser().execute(query).fetchall())


@cache
def _select_tree() -> dict[str, Any]:
    """Return the tree of a SELECT with a condition, without the condition."""
    node: dict[str, Any] = _parsed("SELECT 1 WHERE true\n")[0]["node"]
    return {**node, "where_clause": None}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a tree, at any depth."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _check(tree: Any, frames: Collection[str] = ()) -> None:
    """Raise `RequestError` unless a tree reads only views and calls only permitted functions.

    `frames` are the names of further views.
    """
    tables = _named_tables(tree)
    views = (*VIEWS, *(name.lower() for name in frames))
    for node in _nodes(tree):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _QUERIES:
            raise RequestError(_NOT_READING)
        if node.get("class", "STAR") not in _EXPRESSIONS:
            raise RequestError(_NOT_READING)
        if "function_name" in node:
            _check_function(node)
        elif _is_source(node):
            _check_source(node, kind, tables, views)


def _named_tables(tree: Any) -> set[str]:
    """Return the names that WITH gives to tables, anywhere in a tree.

    Outside its scope such a name means whatever DuckDB has under it. So it may not be the name of a
    file or of an internal view.
    """
    maps = [each for node in _nodes(tree) if isinstance(each := node.get("cte_map"), dict)]
    named = {str(entry["key"]) for each in maps for entry in each["map"]}
    named |= {str(node["cte_name"]) for node in _nodes(tree) if "cte_name" in node}
    tables = {name.lower() for name in named if _PLAIN_NAME.fullmatch(name)}
    if taken := sorted(tables & _names(_CATALOG)):
        raise RequestError(
            f"WITH names a table '{taken[0]}', which is the name of a view of DuckDB: choose "
            "another name"
        )
    return tables


def _is_source(node: dict[str, Any]) -> bool:
    """Return whether a node is a source after FROM: only these have an alias and a sample."""
    return "sample" in node and "alias" in node and "class" not in node


def _check_source(node: dict[str, Any], kind: str, tables: set[str], views: Sequence[str]) -> None:
    if kind not in _SOURCES:
        raise RequestError(_NOT_READING)
    if kind == "TABLE_FUNCTION":
        name = _name_of(node["function"])
        if name not in _TABLE_FUNCTIONS:
            raise RequestError(
                f"the table function '{name}' is not one that a query may call: use the views "
                f"{', '.join(views)} or the functions {', '.join(sorted(_TABLE_FUNCTIONS))}"
            )
    if kind == "BASE_TABLE" and not _is_known(node, tables, views):
        raise RequestError(
            f"Table with name {node['table_name']} does not exist: a query reads the views "
            f"{', '.join(views)}"
        )
    if kind == "SHOW_REF" and node["query"] is None and node["table_name"] not in {*_SHOWN, *views}:
        raise RequestError("SHOW TABLES is the only SHOW statement that is allowed")


def _is_known(node: dict[str, Any], tables: set[str], views: Sequence[str]) -> bool:
    *places, name = (part.lower() for part in node["qualified_name"]["path"])
    if name in views:
        return set(places) <= {"", "memory", "main"}
    return name in tables and not any(places)  # WITH gives names without a schema


def _name_of(function: dict[str, Any]) -> str:
    return str(function["qualified_name"]["path"][-1]).lower()


def _check_function(node: dict[str, Any]) -> None:
    name, pure = _name_of(node), _names(_PURE_FUNCTIONS)
    if name in pure or name in _ALSO_HARMLESS or name in _TABLE_FUNCTIONS:
        return
    near = difflib.get_close_matches(name, pure | _ALSO_HARMLESS, 1, 0.75)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise RequestError(f"the function '{name}' is not one that a query may call{hint}")
