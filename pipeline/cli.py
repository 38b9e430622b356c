"""What the jobs share as programs: how they take flags, and how they end."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.errors import (
    AccessError,
    PipelineError,
    RequestError,
    TableError,
    printable,
)
from pipeline.redaction import trace_of, without_secrets
from pipeline.signals import sigterm_as_ctrl_c
from pipeline.storage import one_line

_ONE_VALUE = (
    "; a flag takes one value: of images one folder, file or URI, and no pattern, of which a shell "
    "makes a list"
)


class _JobParser(argparse.ArgumentParser):
    """Tells a wrong flag as every other wrong request is told, with the flag that was meant."""

    last_line: Mapping[str, Any] | None = None  # what an error adds its own keys to; None: no line

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; where a shell asks for completions, print these and exit."""
        _complete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line on stderr below the usage, the JSON line where the job has one, exit code 2.

        Without the usage where a shell made a list of a pattern: no flag was wrong.
        """
        listed = re.match(r"unrecognized arguments: (?!-)", message)
        text = printable(without_secrets(message)) + (
            _ONE_VALUE if listed else self._meant(message)
        )
        if not listed:
            self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {text}", file=sys.stderr)
        if self.last_line is not None:
            _print_line(self.last_line, [text], 2)
        raise SystemExit(2)

    def _meant(self, message: str) -> str:
        """Of the first word in `message` that is like a flag and is none, the nearest flag."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in re.findall(r"--[\w-]+", message):
            close = difflib.get_close_matches(word, flags, n=1)
            if word not in flags and close:
                return f"; did you mean {close[0]}?"
        return ""


_NO_DEFAULT: tuple[object, ...] = (None, "", [], argparse.SUPPRESS)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Ends a flag's text with its default, as `add_flags` does, where the text tells none."""

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
    """The parser of a job; `description` is the job's own docstring.

    A wrong flag ends the job as `exit_code_of` ends it, which takes the same arguments.
    """
    parser = _JobParser(
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.last_line = None if reads_only else last_line or {}
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions that a shell asks for (argcomplete) and exit; else do nothing."""
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
    """What `work` returns, or for its error 2 (the request is wrong) or 1 (run it again).

    The error goes to stderr in one line. A job whose last line of stdout is a JSON object has such
    a line for an error too, with the exit code, as Ray makes each code of a job but 0 a 1; its
    other keys are those of `last_line`. One that `reads_only` prints an answer or nothing. To it,
    and to any job of a `given_table`, a damaged table is a wrong request; to all of them storage
    that the user's credentials do not open. `stopped` is what a Ctrl-C,
    or a SIGTERM, means to the user: code 1, and a last line without errors. `tell` takes the line
    for stderr and the code, where it is not just to be printed.
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
    except Exception as error:  # noqa: BLE001 - a defect: one line for people, all of it below
        text = f"{type(error).__name__}: {one_line(error)}"
        tell(f"unexpected error: {text}", 1)
        if reads_only:
            print(trace_of(error), file=sys.stderr)
        else:
            _print_line({**(last_line or {}), "trace": trace_of(error)}, [text], 1)
        return 1
    except (KeyboardInterrupt, SystemExit):
        # SystemExit: what Ray's own handlers raise, where they stand in place of ours.
        tell(f"stopped: {stopped}", 1)
        if not reads_only:
            _print_line(last_line or {}, [], 1)
        return 1


def _print_to_stderr(text: str, _code: int) -> None:
    print(text, file=sys.stderr)


def _print_line(last_line: Mapping[str, Any], errors: list[str], code: int) -> None:
    print(json.dumps({**last_line, "errors": errors, "exit_code": code}), flush=True)


def add_place(
    parser: argparse.ArgumentParser, name: str, flag: str, *, metavar: str, text: str
) -> None:
    """Add an argument that is given by its place or by its `flag`; read it with `parse_places`."""
    parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=text)
    parser.add_argument(flag, dest=name, metavar=metavar, help=f"the same as {metavar}")


def parse_places(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *names: str
) -> argparse.Namespace:
    """Parse `argv`, where words and flags may alternate; exit with 2 where one of `names` lacks."""
    _complete(parser)
    args = parser.parse_intermixed_args(argv)
    lacking = [name for name in names if getattr(args, name) is None]
    if lacking:
        parser.error(f"the following arguments are required: {', '.join(lacking)}")
    return args


def positive(text: str) -> int:
    """A whole number above 0, for a flag."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return number


def positives(text: str) -> list[int]:
    """Whole numbers above 0 with commas between them, for a flag."""
    return [positive(number.strip()) for number in text.split(",")]


def add_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], names: Iterable[str] | None = None
) -> None:
    """A flag for each field of `model`, or for those in `names`: its text, None where not given."""
    for name in names or model.model_fields:
        _add_flag(parser, name, model.model_fields[name])


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag, text = "--" + name.replace("_", "-"), field.description or ""
    if field.default is not None and not field.is_required():
        text = f"{text} (default {field.default})"
    kinds = _arms(field.annotation)
    choices = [choice for kind in kinds for choice in typing.get_args(kind)]
    if kinds == [bool]:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif choices and len(kinds) == 1:
        parser.add_argument(flag, choices=choices, help=text)
    else:
        metavar = "|".join(["N" if kinds[0] in (int, float) else "TEXT", *choices])
        parser.add_argument(flag, metavar=metavar, help=text)


def _arms(kind: Any) -> list[Any]:
    """The types that `kind` allows, but for None and what they are annotated with."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _arms(typing.get_args(kind)[0])
    if origin in (types.UnionType, typing.Union):
        return [arm for part in typing.get_args(kind) for arm in _arms(part)]
    return [] if kind is type(None) else [kind]
