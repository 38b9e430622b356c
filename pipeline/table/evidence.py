"""What proves the fields of `_table.json` and of the manifests, for `verify`.

Each of these documents says things that other files say too: the footers and rows of parts, the
name of the shard, the model's own bundle. What only one document says cannot be proved; `verify`
lists that.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import PipelineError, TableError, printable
from pipeline.storage import Store, canonical_uri, slice_number
from pipeline.storage.file_types import is_list, plain_name, shard_kind
from pipeline.storage.patterns import has_braces, has_glob
from pipeline.table.schema import SCHEMA_VERSION
from pipeline.table.shard_records import ShardRecord
from pipeline.table.spec import EARLIER_VALUES, SPEC_NAME, TableSpec, read_json, to_json

# Where the config repeats a setting, as it was asked for.
_REPEATED = {
    "columns.aligned_jpeg": "keep_crops",
    "columns.all_steps": "keep_steps",
    "columns.reconstruction_jpeg": "keep_reconstructions",
    "columns.w_plus_dtype": "latent_dtype",
    "layout.files_per_shard": "files_per_shard",
    "layout.image_column": "image_column",
    "layout.image_field": "image_field",
    "layout.limit": "limit",
    "layout.sniff": "sniff",
    "settings.best_step_by": "best_step_by",
    "settings.precision": "precision",
    "settings.alignment.faces": "faces",
}
_MODEL_WORDS = ("name", "domain", "source", "licence")
_SHORTENED = re.compile(r"~[0-9a-f]{64}\Z")


def expect(holds: bool, otherwise: str) -> None:
    """Raise `TableError` with `otherwise` unless something `holds`."""
    if not holds:
        raise TableError(otherwise)


def check_spec(store: Store, spec: TableSpec, *, weights: bool) -> None:
    """Raise `TableError` where `_table.json` contradicts itself or, with `weights`, its model.

    The model is loaded where it is a bundle on this machine; one of other weights proves nothing.
    """
    document = read_json(store, SPEC_NAME)
    expect(
        document.get("fingerprint") == spec.fingerprint,
        f"{SPEC_NAME} has another fingerprint than its settings have",
    )
    expect(
        spec.columns.w_plus_dtype in ("float16", "float32"),
        f"{SPEC_NAME}: w_plus_dtype is '{spec.columns.w_plus_dtype}'",
    )
    for path, name in _REPEATED.items():
        given = spec.config.get(name)
        # Codes that were imported without images have nothing to recognise.
        if given is not None and (path != "layout.sniff" or _has_images(spec)):
            found = _at(document, path, EARLIER_VALUES.get(path))
            expect(
                found is None or found == given,
                f"{SPEC_NAME}: the config has {name} {given!r}, {path} is {found!r}",
            )
    _check_input(spec)
    if weights:
        _check_model(spec)


def _has_images(spec: TableSpec) -> bool:
    """Whether the table was made from images: the `input` of a job, the `images` of an import."""
    return any(spec.config.get(name) is not None for name in ("input", "images"))


def _at(document: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return otherwise if value is None else value


def _check_input(spec: TableSpec) -> None:
    """The config's input is the layout's."""
    given, place = spec.config.get("input"), spec.layout.get("input")
    expect(
        place is None or isinstance(place, str),
        f"{SPEC_NAME}: the layout's input is {place!r}",
    )
    if not isinstance(given, str) or place is None:
        return
    whole = "://" in given or given.startswith("/")
    last = posixpath.normpath(given).rpartition("/")[2]
    if whole:
        holds = printable(canonical_uri(given)) == place
    else:  # as it was given to a cluster's job, whose folder is not known here
        holds = last in (".", "..") or given.startswith("~") or place.endswith(printable(last))
    expect(holds, f"{SPEC_NAME}: the config's input is '{given}', the layout's '{place}'")


def _check_model(spec: TableSpec) -> None:
    """What the description says of the model is what its bundle says, of the same weights."""
    name = spec.config.get("model")
    if not isinstance(name, str):
        return
    from pipeline.models import load_model  # PyTorch, which nothing else here needs
    from pipeline.models.files import bundle_folder, hints_of, named_bundle

    if not (named_bundle(name) or name.startswith("/")):
        return  # no other place is asked for the sake of a check
    try:
        model = load_model(bundle_folder(name), **hints_of(spec.config))
    except (PipelineError, OSError):
        return
    if model.fingerprint != spec.settings.get("model"):
        return
    told = json.loads(to_json(model.metadata))
    for word in _MODEL_WORDS:
        said = spec.model.get(word)
        expect(
            said == told[word],
            f"{SPEC_NAME}: the model's {word} is '{said}', its bundle says '{told[word]}'",
        )


def check_manifest(manifest: ShardRecord, spec: TableSpec) -> None:
    """Raise `TableError` where a manifest is not of this table, or contradicts itself."""
    shard, of = manifest.shard, f"the manifest of shard '{manifest.shard}'"
    expect(
        manifest.schema_version == SCHEMA_VERSION,
        f"{of} has schema version {manifest.schema_version}",
    )
    expect(
        manifest.fingerprint == spec.fingerprint,
        f"{of} was made with another fingerprint than the table",
    )
    numbers = [part.part for part in manifest.parts]
    expect(numbers == list(range(len(numbers))), f"{of} has parts {numbers}")
    for part in manifest.parts:
        expect(
            0 <= part.samples <= manifest.part_size,
            f"{of} has {part.samples} samples in part {part.part}, of {manifest.part_size} at most",
        )
    by_name = shard_kind(manifest.uri)
    if manifest.kind in ("folder", "list"):
        is_slice = slice_number(shard) is not None or shard.startswith("codes-")
        fits = is_slice or by_name is None
    else:
        fits = by_name in (None, manifest.kind) and slice_number(shard) is None
    expect(fits, f"{of}, from '{manifest.uri}', is of kind '{manifest.kind}'")


def check_sources(manifest: ShardRecord, sources: Iterable[str]) -> None:
    """Raise `TableError` where rows came from another place than their shard's manifest says.

    Every reader puts the place of the shard before that of the image. Where a row's place names no
    shard file, as that of a single image does not, it lies in the shard's folder all the same. The
    lines of a list name any place.
    """
    if manifest.kind == "list":
        return
    folder = manifest.uri.rpartition("/")[0] + "/"
    for source in sources:
        if source.startswith((f"{manifest.uri}/", f"{manifest.uri}#")) or source == manifest.uri:
            continue
        if _SHORTENED.search(source):
            continue  # of a name without end its beginning is kept
        inside = re.split("[/#]", source.removeprefix(folder), maxsplit=1)[0]
        expect(
            source.startswith(folder) and not shard_kind(inside),
            f"shard '{manifest.shard}' has a row from '{source}', not from '{manifest.uri}' as its "
            "manifest says",
        )


def check_footer(
    name: str, stamp: Mapping[str, Any], wanted: Mapping[str, Any], metrics: Mapping[str, str]
) -> None:
    """Raise `TableError` where a part's metadata does not say what the documents say of it."""
    for field, value in wanted.items():
        expect(stamp.get(field) == value, f"'{name}' was made with another {field}")
    said = json.loads(to_json({"metrics": stamp.get("metrics", dict(metrics))}))["metrics"]
    expect(said == metrics, f"'{name}' was measured by other metrics than {SPEC_NAME} says")


def check_inputs(spec: TableSpec, outside: str | None) -> None:
    """Raise `TableError` where a shard came from `outside` the table's input.

    A list names any place, and of a pattern it is not known what it stood for: they prove nothing,
    nor does a name that was no UTF-8, which is written otherwise there.
    """
    place = str(spec.layout.get("input"))
    named = has_glob(place) or has_braces(place) or is_list(plain_name(place))
    expect(
        outside is None or named or "\\udc" in place,
        f"a shard came from '{outside}', which is not in the table's input '{place}'",
    )


def is_in_input(spec: TableSpec, uri: str) -> bool:
    """Whether a shard at `uri` lies in the input of the table, by its name.

    The shard of an input that is one image is at the folder of the image.
    """
    place, uri = spec.layout.get("input"), printable(uri)
    if not isinstance(place, str):
        return True
    folder = plain_name(place).rpartition("/")[0] or "/"
    return uri in (place, folder) or uri.startswith(f"{place.rstrip('/')}/")
