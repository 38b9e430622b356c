"""Command lines of the jobs: parsing of flags, exit codes, and the last line of stdout."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.choices import Device
from pipeline.config_loading import flag_of
from pipeline.errors import (
    AccessError,
    ConfigError,
    PipelineError,
    RequestError,
    TableError,
    printable,
)
from pipeline.redaction import finite, trace_of, without_secrets
from pipeline.signals import sigterm_as_ctrl_c
from pipeline.storage import one_line

_ONE_VALUE = (
    "; a flag takes one value, so give one folder, file or URI of images: a shell expands a "
    "pattern to a list"
)


class _JobParser(argparse.ArgumentParser):
    """Parser that reports a wrong flag like any other wrong request, with the nearest flag."""

    last_line: Mapping[str, Any] | None = None  # keys of an error's JSON line; None: no line

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; if a shell requests completions, print them and exit."""
        _complete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage, one error line on stderr, and the JSON line if any; exit with code 2.

        Omits the usage if a shell expanded a pattern to a list: then no flag was wrong.
        """
        listed = re.match(r"unrecognized arguments: (?!-)", message)
        text = printable(without_secrets(message)) + (
            _ONE_VALUE if listed else self._nearest_flag_hint(message)
        )
        if not listed:
            self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {text}", file=sys.stderr)
        if self.last_line is not None:
            _print_line(self.last_line, [text], 2)
        raise SystemExit(2)

    def _nearest_flag_hint(self, message: str) -> str:
        """Return a hint with the flag nearest to the first unknown flag in `message`, or ""."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in re.findall(r"--[\w-]+", message):
            close = difflib.get_close_matches(word, flags, n=1)
            if word not in flags and close:
                return f"; did you mean {close[0]}?"
        return ""


_NO_DEFAULT: tuple[object, ...] = (None, "", [], argparse.SUPPRESS)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that appends a flag's default, as `add_flags` does, unless the text states it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        nothing = action.default in _NO_DEFAULT or action.default is False
        return text if nothing or "default" in text else f"{text} (default %(default)s)"


def job_parser(
    description: str | None,
    *,
    reads_only: bool = False,
    last_line: Mapping[str, Any] | None = None,
) -> argparse.ArgumentParser:
    """Return the parser of a job; `description` is the job's docstring.

    A wrong flag ends the job as `exit_code_of` does, which takes the same arguments.
    """
    parser = _JobParser(
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    # A list of numbers such as -3,0,3 is the value of a flag.
    parser._negative_number_matcher = re.compile(r"-\.?\d[\d.,eE+-]*$")
    parser.last_line = None if reads_only else last_line or {}
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions that a shell requests (argcomplete) and exit; else do nothing."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def exit_code_of(
    work: Callable[[], int],
    *,
    reads_only: bool = False,
    given_table: bool = False,
    stopped: str = "nothing is half done",
    last_line: Mapping[str, Any] | None = None,
    tell: Callable[[str, int], None] | None = None,
) -> int:
    """Return the result of `work`; after an error 2 (wrong request) or 1 (run it again).

    The error is printed to stderr in one line. A job whose last line of stdout is a JSON object
    prints one after an error too, including the exit code, because Ray turns every code of a job
    except 0 into 1; `last_line` has its other keys. A `reads_only` job prints an answer or nothing.

    For a `reads_only` job, and for any job of a `given_table`, a damaged table is a wrong request;
    for all jobs storage that denies access to the user's credentials is one. `stopped` explains the
    state after Ctrl-C or SIGTERM: code 1, and a last line without errors. `tell` receives the line
    for stderr and the code; by default the line is printed.
    """
    tell = tell or _print_to_stderr
    wrong: tuple[type[PipelineError], ...] = (RequestError, AccessError)
    if reads_only or given_table:
        wrong = (*wrong, TableError)
    try:
        with sigterm_as_ctrl_c():
            return work()
    except PipelineError as error:
        code = 2 if isinstance(error, wrong) else 1
        text = without_secrets(str(error))
        tell(f"{type(error).__name__}: {text}", code)
        if not reads_only:
            _print_line(last_line or {}, [text], code)
        return code
    except Exception as error:  # noqa: BLE001 - a bug: one line for people, the trace for machines
        text = f"{type(error).__name__}: {one_line(error)}"
        tell(f"unexpected error: {text}", 1)
        if reads_only:
            print(trace_of(error), file=sys.stderr)
        else:
            _print_line({**(last_line or {}), "trace": trace_of(error)}, [text], 1)
        return 1
    except (KeyboardInterrupt, SystemExit):
        # SystemExit: raised by Ray's signal handlers, which may have replaced ours.
        tell(f"stopped: {stopped}", 1)
        if not reads_only:
            _print_line(last_line or {}, [], 1)
        return 1


def print_result(work: Callable[[], Mapping[str, Any]], **options: Any) -> int:
    """Print the result of `work` as the last line; return the code, with `exit_code_of`'s options.

    NaN and infinity become null.
    """

    def run() -> int:
        print(json.dumps(finite(work()), allow_nan=False))
        return 0

    return exit_code_of(run, **options)


def _print_to_stderr(text: str, _code: int) -> None:
    print(text, file=sys.stderr)


def _print_line(last_line: Mapping[str, Any], errors: list[str], code: int) -> None:
    print(json.dumps({**last_line, "errors": errors, "exit_code": code}), flush=True)


def add_place(
    parser: argparse.ArgumentParser, name: str, flag: str, *, metavar: str, text: str
) -> None:
    """Add an argument that may be positional or given by `flag`; read it with `parse_places`."""
    parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=text)
    parser.add_argument(flag, dest=name, metavar=metavar, help=f"the same as {metavar}")


def parse_places(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *names: str
) -> argparse.Namespace:
    """Parse `argv` with words and flags in any order; exit with 2 if one of `names` is missing."""
    _complete(parser)
    args = parser.parse_intermixed_args(argv)
    missing = [name for name in names if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return args


def add_selection(
    parser: argparse.ArgumentParser, *, limit: int | None = None, order: str = ""
) -> None:
    """Add `--table --where --order --limit`, which choose faces of a table (`Selection`).

    `limit` and `order` are the defaults.
    """
    parser.add_argument("--table", required=True, metavar="URI", help="the table")
    parser.add_argument(
        "--where", default="", metavar="SQL", help="condition on rows: which faces (default: all)"
    )
    parser.add_argument(
        "--order",
        default=order,
        metavar="SQL",
        help=f"order of the faces, such as 'lpips DESC' (default: {order or 'as stored'})",
    )
    bound = "all" if limit is None else str(limit)
    add_count(parser, "--limit", f"upper bound of faces (default: {bound})", limit)


def add_renderer(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--device`, which choose what renders codes."""
    parser.add_argument("--model", help="model that renders pictures (default: the table's own)")
    add_device(parser, "device that renders pictures")


def add_device(parser: argparse.ArgumentParser, text: str, default: Device = "cpu") -> None:
    """Add `--device`."""
    parser.add_argument("--device", default=default, choices=typing.get_args(Device), help=text)


def refuse_unused(
    args: argparse.Namespace,
    kind: str,
    meant_for: Mapping[str, Sequence[str]],
    words: Callable[[str], str] = "--as {}".format,
) -> None:
    """Raise `ConfigError` for a flag that means nothing for the `kind` of output.

    `meant_for` has the kinds of flags, by their names in the namespace; `words` names a kind.
    """
    for name, kinds in meant_for.items():
        if getattr(args, name) not in (None, False, "") and kind not in kinds:
            places = " or ".join(map(words, kinds))
            raise ConfigError(f"{flag_of(name)} is for {places}, not for {words(kind)}")


def number(
    what: str = "a number", fits: Callable[[float], bool] = math.isfinite
) -> Callable[[str], float]:
    """Return the parser of a flag whose value is `what`: a number for which `fits` is true."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
        return value

    return parse


def positive(text: str) -> int:
    """Return a flag's value as a whole number above 0."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def positives(text: str) -> list[int]:
    """Return a flag's value as whole numbers above 0, separated by commas."""
    return [positive(number.strip()) for number in text.split(",")]


def add_count(
    parser: argparse.ArgumentParser, flag: str, text: str, default: int | None = None
) -> None:
    """Add a flag whose value is a whole number above 0."""
    parser.add_argument(flag, type=positive, default=default, metavar="N", help=text)


def add_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], names: Iterable[str] | None = None
) -> None:
    """Add a flag for each field of `model`, or for those in `names`; a flag not given is None.

    Help lists the fields of the class itself, then those of each base class under its title.
    """
    if names is not None:
        for name in names:
            _add_flag(parser, name, model.model_fields[name])
        return
    for kind in model.__mro__:
        own = [name for name in vars(kind).get("__annotations__", ()) if name in model.model_fields]
        if issubclass(kind, BaseModel) and own:
            title = kind.model_config.get("title")
            group = parser if kind is model else parser.add_argument_group(title)
            for name in own:
                _add_flag(group, name, model.model_fields[name])


def _add_flag(parser: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    flag, text = flag_of(name), field.description or ""
    if field.default is not None and not field.is_required():
        text = f"{text} (default {field.default})"
    kinds = _allowed_types(field.annotation)
    choices = [choice for kind in kinds for choice in typing.get_args(kind)]
    if kinds == [bool]:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif choices and len(kinds) == 1:
        parser.add_argument(flag, choices=choices, help=text)
    else:
        metavar = "|".join(["N" if kinds[0] in (int, float) else "TEXT", *choices])
        parser.add_argument(flag, metavar=metavar, help=text)


def _allowed_types(kind: Any) -> list[Any]:
    """Return the types that `kind` allows, without None and without annotations."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _allowed_types(typing.get_args(kind)[0])
    if origin in (types.UnionType, typing.Union):
        return [arm for part in typing.get_args(kind) for arm in _allowed_types(part)]
    return [] if kind is type(None) else [kind]
