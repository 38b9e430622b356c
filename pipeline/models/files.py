"""Find and read model files: bundles in this package, local paths, any fsspec URI."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypedDict

from pipeline.errors import ModelError, StorageError

if TYPE_CHECKING:
    from pipeline.storage import Store

RECORD_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"  # of a bundle
CHECKPOINT_SUFFIXES = {".pt", ".pth", ".safetensors", ".pkl"}
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class ModelHints(TypedDict, total=False):
    """Arguments of `load_model` for properties that a model's file may lack."""

    encoder_type: str | None
    domain: str | None
    estimate_latent_avg: bool


def hints_of(settings: Mapping[str, Any]) -> ModelHints:
    """Return the hints among the settings of a job, or in a table's stored config."""
    encoder_type, domain = settings.get("encoder_type"), settings.get("domain")
    return ModelHints(
        encoder_type=None if encoder_type is None else str(encoder_type),
        domain=None if domain is None else str(domain),
        estimate_latent_avg=bool(settings.get("estimate_latent_avg")),
    )


def is_bundle(folder: Store, names: Sequence[str]) -> bool:
    """Return whether `save_bundle` wrote `folder`, whose first file names are `names`.

    True too if writing stopped between the two files.
    """
    if RECORD_FILE in names:
        with folder.open(RECORD_FILE) as file:
            return b'"architecture"' in file.read(1 << 20)
    if list(names) != [WEIGHTS_FILE]:
        return False
    with folder.open(WEIGHTS_FILE) as file:
        length = min(int.from_bytes(file.read(8), "little"), 16 << 20)
        return b'"latent_avg"' in file.read(length)


def bundle_names() -> list[str]:
    """Return the names of the bundles that this package contains."""
    home = importlib.resources.files("pipeline.models") / "bundles"
    if not home.is_dir():
        return []
    return sorted(entry.name for entry in home.iterdir() if (entry / RECORD_FILE).is_file())


def bundle_folder(name_or_uri: str) -> str:
    """Return the folder of the bundle with this name or at this location.

    Raises `ModelError` if the text can be neither.
    """
    if name_or_uri in bundle_names():
        return str(importlib.resources.files("pipeline.models") / "bundles" / name_or_uri)
    if "/" not in name_or_uri and "\\" not in name_or_uri and name_or_uri not in {".", ".."}:
        names = ", ".join(bundle_names()) or "none is installed"
        raise ModelError(
            f"no model is called '{name_or_uri}' (known: {names}); "
            "give a bundle folder or a .pt file by its path, such as ./my-model"
        )
    if "://" not in name_or_uri and Path(name_or_uri).is_file():
        raise ModelError(
            f"'{name_or_uri}' is not a model: give a bundle's folder, or a file that ends in "
            ".pt, .pth, .safetensors or .pkl"
        )
    return name_or_uri.rstrip("/")


def check_model(name_or_uri: str) -> None:
    """Raise `ModelError` if no model has this name or location; reads no weights."""
    if PurePosixPath(name_or_uri).suffix in CHECKPOINT_SUFFIXES:
        check_model_file(name_or_uri)
    else:
        check_model_file(f"{bundle_folder(name_or_uri)}/{RECORD_FILE}")


def check_model_file(uri: str, what: str = "model file") -> None:
    """Raise what `open_model_file` raises for a missing file, without reading the file."""
    if "://" not in uri:
        with open_model_file(uri, what):
            return
    from pipeline.storage.uris import canonical_uri, filesystem, storage_errors

    fs, path = filesystem(canonical_uri(uri), versions=True)
    with _naming_an_absent(what, uri), storage_errors(f"look up '{uri}'"):
        fs.info(path)


@contextmanager
def open_model_file(uri: str, what: str = "model file") -> Iterator[IO[bytes]]:
    """Open a file for reading inside a `with` block; a file behind a URI is read into memory first.

    `what` says in errors what the file is. Raises `ModelError` if it does not exist, `StorageError`
    if it cannot be read to its end, and `InputError` for a URI with credentials or of an unknown
    scheme.
    """
    if "://" in uri:
        from pipeline.storage.uris import read_file  # local files work without fsspec

        with _naming_an_absent(what, uri):
            content = read_file(uri)
        yield io.BytesIO(content)
        return
    try:
        with Path(uri).expanduser().open("rb") as file:
            yield file
    except (*_ABSENT, ValueError, RuntimeError) as error:  # an invalid name; of an unknown user
        raise ModelError(f"no {what} at {uri}") from error
    except OSError as error:
        raise StorageError(f"cannot read the {what} {uri}: {error}") from error


@contextmanager
def _naming_an_absent(what: str, uri: str) -> Iterator[None]:
    """Turn the error of a storage that has no such file, or cannot, into a `ModelError`."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, _ABSENT):
            raise ModelError(f"no {what} at {uri}") from error
        raise
    except ValueError as error:
        raise ModelError(f"no {what} at {uri}") from error
