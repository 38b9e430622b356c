"""Forget images: erase their rows from every file of a table, and keep them out of it.

    python jobs/forget.py --table URI --where "key = 'photo.jpg'" --reason "request 17" [--dry-run]
    python jobs/forget.py --table URI --like PHOTO --reason "request 17" [--similar 0.9 [--yes]]
    python jobs/forget.py --table URI --listed-in TABLE --reason "request 17"
    python jobs/forget.py --table URI

--where chooses faces, and rejects if the condition fits them; if it chooses all faces of an image,
the whole image is forgotten, otherwise single faces. --like: images with the bytes of a photo; with
--similar also faces that look like it, which are only listed until --yes is given. --listed-in:
images that another table has forgotten. Copies of an image, with the same bytes, go too. Without
any of these it finishes a forget that was interrupted. Later runs keep these images out and count
them as rejects, `forgotten`. Tables that may hold them too are named, and what stays is printed.
The last line of stdout is JSON.

exit code  0 done   1 failed or stopped, run again   2 the request is wrong
           3 nothing was erased: --similar needs --yes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

from pipeline.choices import SearchBy
from pipeline.cli import add_device, add_selection, exit_code_of, job_parser, number
from pipeline.config_loading import flag_of
from pipeline.errors import ConfigError, RequestError, printable
from pipeline.storage import MAX_SAMPLE_BYTES, Store
from pipeline.storage.uris import read_bounded
from pipeline.table import Table, open_table
from pipeline.table.forgetting.descendants import Descendant, find_descendants
from pipeline.table.forgetting.erase import ForgottenRow, forget, forgotten_rows
from pipeline.table.forgetting.forgotten import ForgetList, Forgotten
from pipeline.table.forgetting.leftovers import leftovers
from pipeline.table.forgetting.sources import choose_sources, lists_of, new_list
from pipeline.table.selection import Selection

NOT_CONFIRMED = 3
SHOWN = 50
_STOPPED = "run the same command again, which does the rest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, erase, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _forget(args), given_table=True, stopped=_STOPPED)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument("--like", default="", metavar="PHOTO", help="a photo, by path or URI")
    parser.add_argument(
        "--similar",
        type=number("a similarity above 0 and up to 1", lambda value: 0 < value <= 1),
        metavar="X",
        help="with --like: also faces of at least this similarity, up to 1",
    )
    parser.add_argument(
        "--by",
        choices=get_args(SearchBy),
        help="what --similar compares (default: identity if the table has it, else w_plus)",
    )
    add_device(parser, "for --similar", "auto")
    parser.add_argument(
        "--listed-in", default="", metavar="TABLE", help="forget what this table has forgotten"
    )
    parser.add_argument(
        "--reason",
        default="",
        metavar="TEXT",
        help="why, with --where and --like; kept in the table, so it must not name a person",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would go; write nothing")
    parser.add_argument("--yes", action="store_true", help="erase the faces of --similar")
    parser.add_argument(
        "--descendants",
        nargs="+",
        default=[],
        metavar="URI",
        help="tables to look for these images in, besides those in the same folder",
    )
    parser.add_argument(
        "--ignore-run",
        action="append",
        default=[],
        metavar="RUN",
        help="a run that seems to write, but was killed",
    )
    return parser


def _forget(args: argparse.Namespace) -> int:
    _check(args)
    table = open_table(args.table)
    store, spec = table.store, table.spec
    known = Forgotten.read(store)
    lists, similar = _request(args, table, known)
    forgotten = known + Forgotten(lists)
    rows = list(forgotten_rows(store, forgotten))
    for line in _lines(rows, similar):
        print(printable(line), file=sys.stderr)
    tables = find_descendants(store, spec, forgotten, args.descendants)
    confirmed = args.yes or args.similar is None
    facts: dict[str, Any] = {
        "table": store.root,
        "dry_run": args.dry_run or not confirmed,
        "images": len({row.uri for row in rows}),
        "faces": sum(row.kind == "latents" for row in rows),
        "rejects": sum(row.kind == "rejects" for row in rows),
        "parts": len({(row.shard, row.part) for row in rows}),
        "shards": len({row.shard for row in rows}),
        "similar": similar,
        "descendants": [each.to_dict() for each in tables],
    }
    mentions: tuple[str, ...] = ()
    if not facts["dry_run"]:
        removes = {name: facts[name] for name in ("faces", "rejects")}
        counted = [replace(each, removes=removes) for each in lists]
        erased = forget(store, counted, ignored_runs=args.ignore_run)
        mentions = erased.mentions
        facts |= {name: value for name, value in asdict(erased).items() if name != "mentions"}
    facts["stays"] = leftovers(store, spec, mentions)
    for line in _closing_lines(facts, tables):
        print(printable(line), file=sys.stderr)
    code = 0 if confirmed or args.dry_run else NOT_CONFIRMED
    print(json.dumps({**facts, "errors": [], "exit_code": code}))
    return code


def _check(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for flags that do not fit together."""
    ways = [flag_of(name) for name in ("where", "like", "listed_in") if vars(args)[name]]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)}: choose the images in one way at a time")
    if not args.where and (args.order or args.limit is not None):
        raise ConfigError("--order and --limit need --where: which faces are to be forgotten")
    if not args.like and (args.similar is not None or args.by):
        raise ConfigError("--similar and --by need --like: a photo to compare with")
    if args.by and args.similar is None:
        raise ConfigError("--by is what --similar compares: add --similar")
    if (args.where or args.like) and not args.reason and not args.dry_run:
        raise ConfigError(
            f"{ways[0]}: say why with --reason, such as the number of a request; it is kept in the "
            "table, so it must not name a person"
        )


def _request(
    args: argparse.Namespace, table: Table, known: Forgotten
) -> tuple[list[ForgetList], dict[str, float]]:
    """Return the images to forget beside the `known` ones, and the similarities of faces by id.

    Raises `RequestError` if a selection chooses none.
    """
    similar: dict[str, float] = {}
    lists: list[ForgetList] = []
    if args.listed_in:
        listed = Store(args.listed_in)
        lists = lists_of(listed, args.reason or f"forgotten in '{listed.root}'")
    elif args.where or args.like:
        selections = [Selection(table, args.where, args.order, args.limit)]
        if args.like:
            similar = _similar_faces(table, args) if args.similar is not None else {}
            selections = _like_selections(table, args.like, similar)
        chosen = [choose_sources(selection) for selection in selections]
        sources = [source for some, _ in chosen for source in some]
        if not sources and not known.unfinished:
            raise RequestError(_nothing(table, args))
        keys = set().union(*(names for _, names in chosen))
        lists = [new_list(table, sources, args.reason, keys)] if sources else []
    return [each for each in lists if not known.has(each)], similar


def _nothing(table: Table, args: argparse.Namespace) -> str:
    root = table.store.root
    if args.where:
        return f"--where \"{args.where}\" selects no face and no reject of the table '{root}'"
    more = "" if args.similar is None else f", and none is as similar as {args.similar:g}"
    return f"no row of the table '{root}' is of an image with the bytes of '{args.like}'{more}"


def _like_selections(table: Table, photo: str, similar: dict[str, float]) -> list[Selection]:
    """Return the selections of the rows with a photo's bytes, and of the similar faces."""
    content = read_bounded(
        photo,
        MAX_SAMPLE_BYTES,
        missing=f"--like '{photo}': no file of this name exists",
        large=f"--like '{photo}': an image has at most {MAX_SAMPLE_BYTES >> 20} MB",
    )
    digest = hashlib.sha256(content).hexdigest()
    selections = [Selection(table, f"source_sha256 = '{digest}'")]
    if similar:
        ids = ", ".join("'" + image.replace("'", "''") + "'" for image in similar)
        selections.append(Selection(table, f"image_id IN ({ids})"))
    return selections


def _similar_faces(table: Table, args: argparse.Namespace) -> dict[str, float]:
    """Return the faces that look like the photo, and their similarities, the largest first."""
    # PyTorch is slow to import, and exact bytes need no networks.
    from pipeline.engine.photos import queries_of
    from pipeline.inversion import ready_device
    from pipeline.search.neighbours import faces_above
    from pipeline.search.requests import default_by
    from pipeline.search.vectors import Vectors

    by: SearchBy = args.by or default_by(table)
    vectors = Vectors(Selection(table), by, ready_device(args.device))
    _, queries = queries_of(vectors, [args.like], args.device)
    return faces_above(vectors, queries, args.similar)


def _lines(rows: Sequence[ForgottenRow], similar: dict[str, float]) -> Iterator[str]:
    """Yield a line for each of the first rows: what it is, and how similar it is to the photo."""
    for row in rows[:SHOWN]:
        kind = "face  " if row.kind == "latents" else "reject"
        alike = f"  similarity {similar[row.image_id]:.3f}" if row.image_id in similar else ""
        yield f"{kind}  {row.image_id}{alike}"
    if len(rows) > SHOWN:
        yield f"... and {len(rows) - SHOWN:,} more"


def _closing_lines(facts: dict[str, Any], tables: Sequence[Descendant]) -> Iterator[str]:
    """Yield what was done, which tables to look at, and what stays."""
    done = "would go" if facts["dry_run"] else "erased"
    images, faces, rejects, parts, shards = (
        f"{facts[name]:,} {name.removesuffix('s') if facts[name] == 1 else name}"
        for name in ("images", "faces", "rejects", "parts", "shards")
    )
    yield f"{images}: {faces} and {rejects} {done}, in {parts} of {shards}"
    yield from facts.get("notes", ())
    for table in tables:
        yield f"table '{table.table}', {table.why}, has {table.rows:,} rows of these images"
        if table.rows and not facts["dry_run"]:
            places = ("--table", table.table, "--listed-in", facts["table"])
            yield f"  restyle forget {shlex.join(places)}"
    yield "not erased:"
    yield from (f"  {line}" for line in facts["stays"])
    if facts["dry_run"]:
        yield "nothing was erased: this was a dry run" + (
            "; to erase these faces, add --yes" if facts["similar"] else ""
        )


if __name__ == "__main__":
    sys.exit(main())
