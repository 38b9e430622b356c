"""Checks of `verify` that compare `_table.json` and the manifests with other files.

Many fields of these documents are repeated elsewhere: in the footers and rows of parts, the name of
the shard, the model's bundle. Fields that are stored only once cannot be checked; `verify_table`
lists them.
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
from pipeline.table.forgetting.forgotten import FORGOTTEN
from pipeline.table.schema import SCHEMA_VERSION
from pipeline.table.shard_records import ShardRecord
from pipeline.table.spec import (
    EARLIER_VALUES,
    SPEC_NAME,
    TableSpec,
    config_name,
    read_json,
    to_json,
)

# Settings that the config repeats, under the names of their flags.
_REPEATED = (
    *("columns.aligned_jpeg", "columns.all_steps", "columns.identity"),
    *("columns.reconstruction_jpeg", "columns.w_plus_dtype", "layout.files_per_shard"),
    *("layout.image_column", "layout.image_field", "layout.limit", "layout.sniff"),
    *("settings.best_step_by", "settings.identity_steps", "settings.precision"),
    "settings.alignment.faces",
)
_MODEL_FIELDS = ("name", "domain", "source", "licence")
_SHORTENED = re.compile(r"~[0-9a-f]{64}\Z")  # end of a source URI that was cut to the limit


def expect(holds: bool, otherwise: str) -> None:
    """Raise `TableError` with the message `otherwise` unless `holds`."""
    if not holds:
        raise TableError(otherwise)


def check_spec(store: Store, spec: TableSpec, *, weights: bool) -> None:
    """Raise `TableError` if `_table.json` contradicts itself or, with `weights`, its model.

    The model is loaded only if its bundle is on this machine. A bundle of other weights is ignored.
    """
    document = read_json(store, SPEC_NAME)
    expect(
        document.get("fingerprint") == spec.fingerprint,
        f"{SPEC_NAME}: the fingerprint is not the hash of the settings",
    )
    expect(
        spec.columns.w_plus_dtype in ("float16", "float32"),
        f"{SPEC_NAME}: w_plus_dtype is '{spec.columns.w_plus_dtype}', neither float16 nor float32",
    )
    for path in _REPEATED:
        name = config_name(path)
        given = spec.config.get(name)
        # Codes that were imported without images have no file types to detect.
        if given is not None and (path != "layout.sniff" or _has_images(spec)):
            setting = _at(document, path, EARLIER_VALUES.get(path))
            expect(
                setting is None or setting == given,
                f"{SPEC_NAME}: the config has {name} {given!r}, but {path} is {setting!r}",
            )
    _check_input(spec)
    if weights:
        _check_model(spec)


def _has_images(spec: TableSpec) -> bool:
    """Return whether the table was made from images: `input` of a job, `images` of an import."""
    return any(spec.config.get(name) is not None for name in ("input", "images"))


def _at(document: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return otherwise if value is None else value


def _check_input(spec: TableSpec) -> None:
    """Raise `TableError` unless config and layout name the same input."""
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
    else:  # relative to the working folder of the job, which is unknown here
        holds = last in (".", "..") or given.startswith("~") or place.endswith(printable(last))
    expect(holds, f"{SPEC_NAME}: the config's input is '{given}', the layout's is '{place}'")


def _check_model(spec: TableSpec) -> None:
    """Raise `TableError` if a bundle of the same weights describes the model otherwise."""
    name = spec.config.get("model")
    if not isinstance(name, str):
        return
    from pipeline.models import load_model  # imports PyTorch, which nothing else here needs
    from pipeline.models.files import bundle_folder, hints_of, named_bundle

    if not (named_bundle(name) or name.startswith("/")):
        return  # a check downloads no model
    try:
        model = load_model(bundle_folder(name), **hints_of(spec.config))
    except (PipelineError, OSError):
        return
    if model.fingerprint != spec.settings.get("model"):
        return
    bundle = json.loads(to_json(model.metadata))
    for name in _MODEL_FIELDS:
        stored = spec.model.get(name)
        expect(
            stored == bundle[name],
            f"{SPEC_NAME}: the model's {name} is '{stored}', its bundle says '{bundle[name]}'",
        )


def check_manifest(manifest: ShardRecord, spec: TableSpec) -> None:
    """Raise `TableError` if a manifest belongs to another table, or contradicts itself."""
    shard, of = manifest.shard, f"the manifest of shard '{manifest.shard}'"
    expect(
        manifest.schema_version == SCHEMA_VERSION,
        f"{of} has schema version {manifest.schema_version}",
    )
    expect(
        manifest.fingerprint == spec.fingerprint,
        f"{of} has another fingerprint than the table",
    )
    numbers = [part.part for part in manifest.parts]
    expect(numbers == list(range(len(numbers))), f"{of} has parts {numbers}: not 0, 1, 2, ...")
    for part in manifest.parts:
        expect(
            0 <= part.samples <= manifest.part_size,
            f"{of} has {part.samples} samples in part {part.part}, more than its part size "
            f"{manifest.part_size}",
        )
    by_name = shard_kind(manifest.uri)
    if manifest.kind in ("folder", "list"):
        is_slice = slice_number(shard) is not None or shard.startswith("codes-")
        fits = is_slice or by_name is None
    else:
        fits = by_name in (None, manifest.kind) and slice_number(shard) is None
    expect(fits, f"{of}, from '{manifest.uri}', is of kind '{manifest.kind}'")


def check_sources(manifest: ShardRecord, sources: Iterable[str]) -> None:
    """Raise `TableError` if rows came from another place than their shard's manifest says.

    In `source_uri` every reader writes the shard's URI before the name of the image. The URI of a
    single image names no shard file, but lies in the shard's folder. A list may name any URI, so
    its rows are not checked. The reject of a forgotten image names no source.
    """
    if manifest.kind == "list":
        return
    folder = manifest.uri.rpartition("/")[0] + "/"
    for source in sources:
        if not source and FORGOTTEN in manifest.stats.counts.reasons:
            continue
        if source.startswith((f"{manifest.uri}/", f"{manifest.uri}#")) or source == manifest.uri:
            continue
        if _SHORTENED.search(source):
            continue  # an overlong name, of which only the beginning is stored
        inside = re.split("[/#]", source.removeprefix(folder), maxsplit=1)[0]
        expect(
            source.startswith(folder) and not shard_kind(inside),
            f"shard '{manifest.shard}' has a row from '{source}', not from '{manifest.uri}' as its "
            "manifest says",
        )


def check_footer(
    name: str, metadata: Mapping[str, Any], expected: Mapping[str, Any], metrics: Mapping[str, str]
) -> None:
    """Raise `TableError` unless a part's metadata holds the `expected` values and `metrics`."""
    for field, value in expected.items():
        expect(metadata.get(field) == value, f"'{name}' was made with another {field}")
    stored = json.loads(to_json({"metrics": metadata.get("metrics", dict(metrics))}))["metrics"]
    expect(stored == metrics, f"'{name}' was measured with other metrics than {SPEC_NAME} says")


def is_in_input(spec: TableSpec, uri: str) -> bool:
    """Return whether a shard at `uri` may lie in the input of the table, judging by its name.

    If the input is one image, the URI of its shard is the folder of the image. Any shard may be of
    a list, which may name any URI; of a pattern, whose matches are not stored; of a name that is
    not UTF-8, which the layout stores in an escaped form.
    """
    place, uri = spec.layout.get("input"), printable(uri)
    if not isinstance(place, str):
        return True
    folder = plain_name(place).rpartition("/")[0] or "/"
    if uri in (place, folder) or uri.startswith(f"{place.rstrip('/')}/"):
        return True
    return has_glob(place) or has_braces(place) or is_list(plain_name(place)) or "\\udc" in place
