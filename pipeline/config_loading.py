"""Load a job's settings into a pydantic model from a YAML file and then from flags.

Groups of settings that several jobs take are base classes of their models.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from pipeline.choices import (
    CHECK_BELOW,
    COARSE_SIDE,
    MOST_SEARCH_PIXELS,
    SEARCH_PIXELS,
    Fit,
    Icc,
    Turns,
)
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.redaction import clean
from pipeline.storage import (
    FILES_PER_SHARD,
    ONE_IMAGE,
    ReadOptions,
    canonical_uri,
    is_local,
    one_line,
)
from pipeline.storage.uris import read_file

_MAX_FILE_BYTES = 1 << 20
_MAX_VALUES = 10_000  # with all aliases and merges expanded
_TEXT = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG

Settings = TypeVar("Settings", bound=BaseModel)


class SettingGroup(BaseModel):
    """Settings that more than one job takes; `title` is their heading in `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _own_first(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Put the fields of the class itself before those of its base classes."""
        values: dict[str, Any] = dump(self)
        names = {**type(self).__annotations__, **values}
        return {name: values[name] for name in names if name in values}


class AlignmentFlags(SettingGroup):
    """Settings by which images become faces."""

    model_config = ConfigDict(title="alignment")

    prealigned: bool | None = Field(
        None, description="images are crops: resize without face detection (default: by the domain)"
    )
    fit: Fit | None = Field(
        None,
        description="how a prealigned image of another aspect ratio is resized (default stretch)",
    )
    turns: Turns = Field(
        "auto", description="whether photos rotated by 90, 180 and 270 degrees are searched too"
    )
    search_pixels: int = Field(
        SEARCH_PIXELS,
        ge=0,
        le=MOST_SEARCH_PIXELS,
        description="maximum pixels of the enlarged copy in which a face is searched if smaller "
        "copies show none; 0: no copy of more than 1792 px per side",
    )
    check_below: float = Field(
        CHECK_BELOW,
        ge=0,
        allow_inf_nan=False,
        description="faces with a lower detector score are detected again in their crop; 0: none",
    )
    coarse_side: int = Field(
        COARSE_SIDE,
        ge=0,
        lt=448,
        description="longest side in pixels of the copy that is searched first, for a face that "
        "is large in its photo; 0: none",
    )
    min_face: int = Field(32, ge=1, description="minimum side of a face box in pixels")
    icc: Icc = Field(
        "apply",
        description="embedded colour profiles: converted to sRGB, or ignored as in the reference "
        "scripts",
    )


def _image_fields(text: str) -> str:
    """Return webdataset's field names with commas between: `jpg,png` for `jpg;png`."""
    fields = [name.strip(".") for name in re.split(r"[,;|\s]+", text.lower())]
    if not all(fields):
        raise ValueError("names of fields must be separated by commas, such as jpg,png")
    return ",".join(fields)


class ReadFlags(SettingGroup):
    """Settings of listing an input and reading its shards."""

    model_config = ConfigDict(title="reading")

    files_per_shard: int = Field(
        FILES_PER_SHARD, ge=1, description="number of files of a folder in one shard"
    )
    sniff: bool = Field(
        True, description="read files without a known extension if their first bytes are an image's"
    )
    image_field: Annotated[str, AfterValidator(_image_fields)] = Field(
        ONE_IMAGE,
        description="which images of one webdataset key in a tar or zip: one, all, or the fields "
        "to use, the preferred first (jpg,png)",
    )
    image_column: str | None = Field(
        None, description="Parquet column of images (default: the only one, or a usual name)"
    )

    @property
    def read_options(self) -> ReadOptions:
        """Options for listing the input and reading its shards."""
        return ReadOptions(
            sniff=self.sniff, image_field=self.image_field, image_column=self.image_column
        )


# Maps a setting's name to its location in messages.
_Locator = Callable[[str], str]


def fill(kind: type[Settings], file: str | None, flags: Mapping[str, Any]) -> Settings:
    """Return the settings of `file` with `flags` on top; flags that are None are not given.

    Raises `ConfigError` that names every unknown, missing or invalid setting, by its flag or by the
    line of the file that it comes from.
    """
    settings, lines = read_config_file(file) if file else ({}, {})
    given = {name: value for name, value in flags.items() if value is not None}
    settings = settings | given

    def place(name: str) -> str:
        """Return where a setting was given: its flag, or `run.yaml:7: name`."""
        of_file = name in lines and name not in given
        return f"{file}:{lines[name]}: {name}" if of_file else flag_of(name)

    _refuse_booleans(kind, settings, place)
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, place)) from None


def flag_of(name: str) -> str:
    """Return the flag of a setting: `--max-steps` for `max_steps`."""
    return "--" + name.replace("_", "-")


def check_uris(settings: BaseModel, names: Iterable[str]) -> None:
    """Raise `InputError`, with the flag, for a URI that is empty or carries credentials.

    Call it before a URI is written anywhere. Settings that are None are skipped.
    """
    for name in names:
        uri = getattr(settings, name)
        if uri is None:
            continue
        try:
            canonical_uri(uri)
        except InputError as error:
            raise InputError(f"{flag_of(name)}: {error}") from None


def _refuse_booleans(kind: type[Settings], settings: Mapping[str, Any], place: _Locator) -> None:
    """Raise `ConfigError` for `yes` in place of a number, which pydantic would read as 1."""
    for name, value in settings.items():
        field = kind.model_fields.get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else (bool,)
        if isinstance(value, bool) and bool not in kinds:
            raise ConfigError(
                f"{place(name)}: input should be a number or text, not a boolean (got {value})"
            )


def read_config_file(uri: str) -> tuple[dict[str, Any], dict[Any, int]]:
    """Return the settings of the YAML file `uri` (any fsspec URI; may be empty), and their lines.

    Raises `ConfigError` if the file is missing or not a mapping, `InputError` for a URI with
    credentials, and `StorageError` if it cannot be read.
    """
    text = _text_of(uri)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        settings = None if node is None else loader.construct_document(node)
    except _UnreadableValueError as error:
        problem = f"holds a value that cannot be read: {error.__cause__}"
        raise ConfigError(f"{uri}:{error.line}: {problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"'{uri}' is not valid YAML: {_problem(error)}") from error
    # For example a number of five thousand digits, or a thousand nested lists.
    except (ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"'{uri}' holds a value that cannot be read: {error}") from error
    if settings is None:
        return {}, {}
    if not isinstance(settings, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"'{uri}' must hold 'name: value' lines, got {type(settings).__name__}")
    names = [key for key, _ in node.value]
    _refuse_names_that_are_not_text(uri, names)
    return settings, {name.value: name.start_mark.line + 1 for name in names}


def _refuse_names_that_are_not_text(uri: str, names: Iterable[yaml.Node]) -> None:
    """Raise `ConfigError` for each name that YAML reads as a number, date, null or boolean."""
    wrong = [
        f"{uri}:{name.start_mark.line + 1}: setting names must be text, and "
        f"{_shortened(name.value)} is of YAML's type {name.tag.rpartition(':')[2]}"
        for name in names
        if name.tag != _TEXT
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))


def _problem(error: yaml.YAMLError) -> str:
    """Return the problem and its line, without YAML's excerpt, which may cut a URI in two."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)
    return " ".join(str(error).split())


class _UnreadableValueError(Exception):
    """A value that YAML cannot convert, such as a date in month 13."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses duplicate names and expansion bombs.

    By default the last of two values is used silently. Aliases and merges are counted before they
    are expanded: a few lines of them can represent billions of values.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        counts: dict[yaml.Node, int] = {}
        if node is not None and _count_values(node, counts) > _MAX_VALUES:
            if len(counts) > _MAX_VALUES:  # even without expansion
                raise yaml.YAMLError(f"it holds over {_MAX_VALUES} names and values")
            raise yaml.YAMLError(
                f"its aliases and merges expand to over {_MAX_VALUES} values; write them out"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: '{key.value}' is set twice")
            names.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise _UnreadableValueError(node.start_mark.line + 1) from error


def _count_values(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Return the number of nodes of `node` with every alias expanded."""
    if counts.get(node) == 0:
        raise yaml.YAMLError("an alias refers to a value that contains it")
    if node not in counts:
        counts[node] = 0  # in progress
        below: list[Any] = [] if isinstance(node, yaml.ScalarNode) else node.value
        nodes = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
        counts[node] = 1 + sum(_count_values(part, counts) for part in nodes)
    return counts[node]


def _text_of(uri: str) -> str:
    try:
        return read_file(uri, _MAX_FILE_BYTES).decode()
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


def _shortened(value: object) -> str:
    """Return a short form of an invalid value; aliases may nest lists without end."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 1, 200
    try:
        return short.repr(clean(value))  # credentials are blanked before it is cut
    except ValueError:  # an integer of too many digits to be written
        return f"a very large {type(value).__name__}"


def _literals(error: ValidationError, name: str) -> set[str]:
    """Return the literals that the setting accepts, such as `'auto'`."""
    problems = (problem for problem in error.errors() if problem["type"] == "literal_error")
    return {
        str(problem["ctx"]["expected"]) for problem in problems if problem["loc"][:1] == (name,)
    }


def _explain(error: ValidationError, kind: type[BaseModel], place: _Locator) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors():
        # A setting of several types has one problem per type; only the first is reported.
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            where = place(name)  # "run.yaml:7: name", or a flag that does not exist
            start = where.removesuffix(name) if where.endswith(f": {name}") else ""
            line = f"{start}unknown setting '{name}'{_nearest(name, kind)}"
        elif problem["type"] == "missing":
            line = f"{flag_of(name)} is required: pass it, or put '{name}' into the config file"
        elif not name:
            line = problem["msg"].removeprefix("Value error, ")
        else:
            words = _literals(error, name) - {problem.get("ctx", {}).get("expected")}
            fits = "".join(f", or {word}" for word in sorted(words))
            reason = f"{problem['msg'].lower()}{fits} (got {_shortened(problem['input'])})"
            line = f"{place(name)}: {reason}"
        lines.setdefault(name, line)
    return "; ".join(lines.values())
