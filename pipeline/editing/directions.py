"""Directions in W and W+: read files of any published form, fit them to a model, write our own.

A direction is added to codes: `code + strength * direction`. It has one row of 512 numbers for all
rows of a code, or a row for each. A file may also hold several directions: the components of a
GANSpace analysis, or named arrays.
"""

from __future__ import annotations

import importlib.resources
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.editing.w_space import WSpace
from pipeline.errors import ConfigError, InputError, ModelError
from pipeline.storage.readers.npy import read_array
from pipeline.storage.uris import read_bounded
from pipeline.table.schema import STYLE_DIM

Floats = NDArray[np.float32]

_BUILT_IN = importlib.resources.files("pipeline.editing") / "builtin"
SUFFIXES = (".pt", ".pth", ".npy", ".npz", ".safetensors")
# 80 GANSpace components for 18 rows are 3 MB; unpacked sizes have the same limit.
MAX_BYTES = 64 << 20
_MAX_ROWS = 64
_LONGEST_NAME = 60
_RECORD = "restyle_direction"  # key of our own metadata in a .safetensors file
_ARRAY = "direction"  # name of the array in our own files
_CHOICE = re.compile(r"(.+\.(?:pt|pth|npy|npz|safetensors)):([^:/\\]+)", re.DOTALL)
# Components and their standard deviations, by the names that GANSpace's files have.
_COMPONENTS = (("comp", "std"), ("lat_comp", "lat_stdev"), ("act_comp", "act_stdev"))


@dataclass(frozen=True)
class Direction:
    """Direction with a name for columns and captions.

    `rows` is float32 [1, 512], one row for all rows of a code, or [n, 512]. `w_space` is None for a
    file that does not name its model. `facts` is the record of a fit, as its card has it.
    """

    name: str
    rows: Floats
    w_space: WSpace | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def for_styles(self, n_styles: int) -> tuple[Floats, str]:
        """Return the direction as [n_styles, 512], and a note if rows were left out, else "".

        Raises `ConfigError` if it has more than one row but fewer than the code.
        """
        count = len(self.rows)
        if count == 1:
            return np.repeat(self.rows, n_styles, axis=0), ""
        if count < n_styles:
            raise ConfigError(
                f"direction '{self.name}' has {count} rows, but a code of this model has "
                f"{n_styles}: give a direction of a model of at least that size, or one of one row"
            )
        cut = f"direction '{self.name}' has {count} rows, of which the first {n_styles} are used"
        return self.rows[:n_styles], cut if count > n_styles else ""

    def check_model(self, model: WSpace) -> str:
        """Return a note if the direction names no model, else ""; `ConfigError` for another one."""
        if self.w_space is None:
            return (
                f"direction '{self.name}' does not say which model it is for: it is used as it is"
            )
        if not self.w_space.accepts(model):
            raise ConfigError(
                f"direction '{self.name}' is for the W space of the model '{self.w_space.model}' "
                f"({self.w_space.w_space[:12]}), not of '{model.model}' ({model.w_space[:12]}): "
                "take a table of that model, or fit the direction on this table "
                "(restyle direction)"
            )
        return ""


def built_in_names() -> list[str]:
    """Return the names of the directions that this package contains."""
    names = [entry.name for entry in _BUILT_IN.iterdir()] if _BUILT_IN.is_dir() else []
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(SUFFIXES))


def read_direction(text: str) -> Direction:
    """Return the direction that `text` names, without executing code from any file.

    `text` is a built-in name, a path or URI of a file, or one with the number or name of a
    direction in it: `ganspace.pt:12`. Files are `.pt` (tensors, dictionaries), `.npy`, `.npz` and
    `.safetensors`; shapes are [512], [1, 512], [n, 512] and [1, n, 512]. Component `k` of a
    GANSpace file is `comp[k] * std[k]`, so that strengths are in standard deviations. Raises
    `InputError` in one line for a missing, damaged or hostile file.
    """
    match = _CHOICE.fullmatch(text)
    uri, choice = match.groups() if match else (text, "")
    if uri in built_in_names():
        content = (_BUILT_IN / f"{uri}.safetensors").read_bytes()
        return _direction(content, f"{uri}.safetensors", choice, name=uri)
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(built_in_names()) or "none"
        raise InputError(
            f"no direction '{text}': give a file ({', '.join(SUFFIXES)}), or a built-in name "
            f"({known})"
        )
    content = read_bounded(
        uri,
        MAX_BYTES,
        missing=f"there is no direction file '{uri}'",
        large=f"{uri}: more than {MAX_BYTES >> 20} MB, too large for directions",
    )
    return _direction(content, uri, choice, name=PurePosixPath(uri).stem)


def save_direction(direction: Direction) -> bytes:
    """Return the bytes of a `.safetensors` file with the direction, its model and its facts."""
    from safetensors.numpy import save

    if direction.w_space is None:
        raise ValueError("a direction is saved with its W space")
    record = {
        "name": direction.name,
        "w_space": asdict(direction.w_space),
        "facts": dict(direction.facts),
    }
    rows = np.ascontiguousarray(direction.rows, np.float32)
    return save({_ARRAY: rows}, {_RECORD: json.dumps(record, sort_keys=True)})


def _direction(content: bytes, source: str, choice: str, *, name: str) -> Direction:
    arrays, record = _arrays(content, source)
    w_space = WSpace.from_dict(record["w_space"], source) if "w_space" in record else None
    facts = record.get("facts")
    rows, chosen = _chosen(arrays, choice, source)
    return Direction(
        name=_name(record.get("name"), name) + chosen,
        rows=_checked(rows, source),
        w_space=w_space,
        facts=facts if isinstance(facts, Mapping) else {},
    )


def _name(recorded: object, otherwise: str) -> str:
    """Return the name in our own record if it can be a column's value and a file's name."""
    if isinstance(recorded, str) and recorded.isprintable() and 0 < len(recorded) <= _LONGEST_NAME:
        return recorded.replace("/", "-")
    return otherwise[:_LONGEST_NAME]


def _chosen(arrays: Mapping[str, Any], choice: str, source: str) -> tuple[Any, str]:
    """Return one direction of a file, and the end of its name if there are several."""
    components = _components(arrays, source)
    if components is not None:
        number = int(choice) if choice.isdecimal() and len(choice) < 9 else -1
        if not 0 <= number < len(components):
            raise InputError(
                f"{source}: has {len(components)} components: choose one by its number, as in "
                f"{PurePosixPath(source).name}:0"
            )
        return components[number], f"-{number}"
    chosen = choice or (next(iter(arrays)) if len(arrays) == 1 else _ARRAY)
    if chosen in arrays:
        return arrays[chosen], f"-{choice}" if choice else ""
    listed = ", ".join(f"'{each}'" for each in sorted(arrays)[:8]) or "nothing"
    if choice or not arrays:
        raise InputError(f"{source}: has no direction '{chosen}' (found {listed})")
    raise InputError(
        f"{source}: has {len(arrays)} arrays ({listed}): choose one by its name, as in "
        f"{PurePosixPath(source).name}:NAME"
    )


def _components(arrays: Mapping[str, Any], source: str) -> Floats | None:
    """Return the components of a GANSpace file times their deviations, [k, n, 512], or None."""
    for name, deviations in _COMPONENTS:
        if name in arrays and deviations in arrays:
            components, scale = _floats(arrays[name], source), _floats(arrays[deviations], source)
            count = len(components) if components.ndim else 0
            if components.ndim < 2 or scale.size != count or not count:
                raise InputError(
                    f"{source}: components of shape {list(components.shape)} with deviations of "
                    f"shape {list(scale.shape)}, expected [k, 1, {STYLE_DIM}] and [k]"
                )
            flat = components.reshape(count, -1) * scale.reshape(count, 1)
            if flat.shape[1] % STYLE_DIM:
                raise InputError(
                    f"{source}: components of shape {list(components.shape)}, expected "
                    f"[k, 1, {STYLE_DIM}]: those of another layer than W are not supported"
                )
            return np.asarray(flat.reshape(count, -1, STYLE_DIM), np.float32)
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    shape: tuple[int, ...] = tuple(getattr(only, "shape", ()))
    if len(shape) == 3 and shape[0] > 1 and shape[-1] == STYLE_DIM:
        return _floats(only, source)  # a stack of directions
    return None


def _checked(value: Any, source: str) -> Floats:
    rows = _floats(value, source)
    shape = list(rows.shape)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim == 3 and shape[0] == 1:
        rows = rows[0]
    if rows.ndim != 2 or rows.shape[1] != STYLE_DIM or not 1 <= len(rows) <= _MAX_ROWS:
        raise InputError(
            f"{source}: has shape {shape}, expected [{STYLE_DIM}], [1, {STYLE_DIM}], "
            f"[n, {STYLE_DIM}] or [1, n, {STYLE_DIM}]"
        )
    if not np.isfinite(rows).all():
        raise InputError(f"{source}: has NaN or infinity")
    if not rows.any():
        raise InputError(f"{source}: is zero everywhere, so it has no direction")
    return np.ascontiguousarray(rows)


def _floats(value: Any, source: str) -> Floats:
    array = value if isinstance(value, np.ndarray) else _of_tensor(value, source)
    if array.dtype.kind != "f":
        raise InputError(f"{source}: has values of type {array.dtype}, expected floats")
    with np.errstate(over="ignore"):  # beyond float32: infinite, which is refused
        return np.asarray(array, np.float32)


def _of_tensor(value: Any, source: str) -> NDArray[Any]:
    import torch

    from pipeline.models.weights import check_held, is_plain

    if not isinstance(value, torch.Tensor) or not is_plain(value):
        raise InputError(f"{source}: has a {type(value).__name__}, expected an array of floats")
    check_held([value], source)
    tensor = value.detach()
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _arrays(content: bytes, source: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the arrays of a file by name, and our own record in it, {} in others' files."""
    suffix = PurePosixPath(source).suffix.lower()
    try:
        if suffix == ".npy":
            return {_ARRAY: read_array(content)}, {}
        if suffix == ".npz":
            return _of_npz(content, source), {}
        if suffix == ".safetensors":
            return _of_safetensors(content, source)
        return _of_torch(content, source), {}
    except (InputError, ConfigError):
        raise
    except ModelError as error:
        raise InputError(str(error)) from error
    except Exception as error:  # numpy, zipfile and json raise any type for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source}: not a direction, or damaged ({reason})") from error


def _of_npz(content: bytes, source: str) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise InputError(f"{source}: refused, it unpacks to more than {MAX_BYTES >> 20} MB")
        arrays = {}
        for info in infos:
            entry = archive.read(info)
            try:
                arrays[info.filename.removesuffix(".npy")] = read_array(entry)
            except ValueError:
                if len(infos) == 1:
                    raise
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"} or arrays


def _of_safetensors(content: bytes, source: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    from safetensors.torch import load

    tensors = dict(load(content))
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    text = metadata.get(_RECORD)
    record = json.loads(text) if text else {}
    if not isinstance(record, dict):
        raise InputError(f"{source}: its record of a direction is damaged")
    return tensors, record


def _of_torch(content: bytes, source: str) -> dict[str, Any]:
    import torch

    from pipeline.models.checkpoint import read_inert
    from pipeline.models.safe_globals import plain

    value = plain(read_inert(io.BytesIO(content), source))
    if isinstance(value, torch.Tensor):
        return {_ARRAY: value}
    if isinstance(value, Mapping):
        named = {str(name): plain(entry) for name, entry in list(value.items())[:4096]}
        return {name: entry for name, entry in named.items() if isinstance(entry, torch.Tensor)}
    raise InputError(f"{source}: has a {type(value).__name__}, expected a tensor of a direction")
