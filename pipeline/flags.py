"""Settings of a pydantic model as command-line flags: one flag a field, unset ones None."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a job whose settings are flags; `description` is the job's own docstring."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_flags(
    parser: argparse.ArgumentParser, model: type[BaseModel], names: Iterable[str] | None = None
) -> None:
    """A flag for each field of `model`, or for those in `names`; values stay text."""
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
