"""Settings of a job: a pydantic model filled from a YAML file and then from flags."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.choices import CHECK_BELOW, MOST_SEARCH_PIXELS, SEARCH_PIXELS, Turns
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import is_local, one_line
from pipeline.storage.uris import read_file

_LONGEST_FILE = 1 << 20  # bytes

Settings = TypeVar("Settings", bound=BaseModel)

TurnsSetting = Annotated[
    Turns, Field(description="whether faces are looked for in photos turned by 90, 180, 270 too")
]
SearchPixels = Annotated[
    int,
    Field(
        ge=0,
        le=MOST_SEARCH_PIXELS,
        description="of the largest copy that is searched where smaller ones show no face; "
        "0: none of more than 1792 px a side",
    ),
]
CheckBelow = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="faces of a lower detector score are looked for again in their crop; 0: none",
    ),
]


class FaceSearch(BaseModel):
    """How faces are looked for, where a job does not take all of these settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: TurnsSetting = "auto"
    search_pixels: SearchPixels = SEARCH_PIXELS
    check_below: CheckBelow = CHECK_BELOW


def fill(kind: type[Settings], file: str | None, flags: Mapping[str, Any]) -> Settings:
    """The file's settings with `flags` on top; flags that are None leave the file's value.

    Raises `ConfigError` that names every unknown, missing or unfit setting.
    """
    settings = read_config_file(file) if file else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    _refuse_truths(kind, settings)
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind)) from None
    except TypeError as error:  # keys that are not strings
        raise ConfigError(f"setting names must be text: {error}") from None


def _refuse_truths(kind: type[Settings], settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for `yes` where a number is wanted: it would be taken for 1."""
    for name, value in settings.items():
        field = kind.model_fields.get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else (bool,)
        if isinstance(value, bool) and bool not in kinds:
            raise ConfigError(f"'{name}': input should not be a truth value (got {value})")


def read_config_file(uri: str) -> dict[str, Any]:
    """The settings in the YAML file at `uri` (any fsspec URI).

    An empty file holds none. Raises `ConfigError` where there is no file or it is not a mapping,
    `InputError` for a URI with credentials, and `StorageError` where a storage does not give it.
    """
    text = _text_of(uri)
    try:
        settings = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"'{uri}' is not valid YAML: {' '.join(str(error).split())}") from error
    # A date in a thirteenth month, a number of five thousand digits, a thousand lists in lists.
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"'{uri}' holds a value that cannot be read: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"'{uri}' must hold 'name: value' lines, got {type(settings).__name__}")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once: of two values the last would be taken in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"'{key.value}' stands there twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _text_of(uri: str) -> str:
    try:
        return read_file(uri, _LONGEST_FILE).decode()
    except StorageError as error:
        if not is_local(uri) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        why = one_line(error.__cause__ or error)
        raise ConfigError(f"cannot read the config file '{uri}': {why}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read the config file '{uri}': {error}") from error


def _nearest(name: str, kind: type[BaseModel]) -> str:
    close = difflib.get_close_matches(name, kind.model_fields, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _shown(value: object) -> str:
    """A value that does not fit; a few lines of aliases make lists in lists without end."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 1, 200
    try:
        return short.repr(value)
    except ValueError:  # an integer of too many digits to be written
        return f"a very large {type(value).__name__}"


def _words(error: ValidationError, name: str) -> set[str]:
    """What the setting takes word for word, such as `'auto'`."""
    told = (problem for problem in error.errors() if problem["type"] == "literal_error")
    return {str(problem["ctx"]["expected"]) for problem in told if problem["loc"][:1] == (name,)}


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors():
        # A setting of several types has a problem with each of them: the first one is told.
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            line = f"unknown setting '{name}'{_nearest(name, kind)}"
        elif problem["type"] == "missing":
            line = f"'{name}' is required: pass --{name} or put it in the config file"
        elif not name:
            line = problem["msg"].removeprefix("Value error, ")
        else:
            words = _words(error, name) - {problem.get("ctx", {}).get("expected")}
            fits = "".join(f", or {word}" for word in sorted(words))
            line = f"'{name}': {problem['msg'].lower()}{fits} (got {_shown(problem['input'])})"
        lines.setdefault(name, line)
    return "; ".join(lines.values())
