"""Where model files lie: bundles inside this package, local paths, and any fsspec URI."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import IO, cast

from pipeline.errors import ModelError, StorageError


def bundle_names() -> list[str]:
    """Names of the bundles that come with the package."""
    home = importlib.resources.files("pipeline.models") / "bundles"
    if not home.is_dir():
        return []
    return sorted(entry.name for entry in home.iterdir() if (entry / "model.json").is_file())


def named_bundle(name: str) -> str | None:
    """The folder of the bundle called `name`, or None."""
    if name not in bundle_names():
        return None
    return str(importlib.resources.files("pipeline.models") / "bundles" / name)


def open_model_file(uri: str) -> IO[bytes]:
    """A file, open for reading. Raises `ModelError` if it does not exist."""
    try:
        if "://" not in uri:
            return Path(uri).open("rb")
        import fsspec  # a bare GPU machine with local files does without it

        return cast(IO[bytes], fsspec.open(uri, "rb").open())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ModelError(f"no model file at {uri}") from error
    except ImportError as error:
        raise ModelError(
            f"{uri}: a package is missing to read this kind of URI: {error}"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {uri}: {error}") from error


def write_model_file(uri: str, content: bytes) -> None:
    """Write `content` whole; on a disk a reader never sees half a file. Raises `StorageError`."""
    try:
        if "://" in uri:
            import fsspec  # a bare GPU machine with local files does without it

            with fsspec.open(uri, "wb") as file:
                file.write(content)
            return
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot write {uri}: {error}") from error
