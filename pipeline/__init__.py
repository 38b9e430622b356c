"""Dataset-scale GAN inversion with ReStyle: images in storage to a table of W+ codes.

The public functions are imported at first use, so that `import pipeline` loads neither PyTorch
nor Arrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from pipeline.alignment import Aligner
    from pipeline.inversion import invert
    from pipeline.models import load_model
    from pipeline.table import open_table

__all__ = ["Aligner", "__version__", "invert", "load_model", "open_table"]

_MODULES = {
    "Aligner": "alignment",
    "invert": "inversion",
    "load_model": "models",
    "open_table": "table",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def _version() -> str:
    """Return the installed version; `0+unknown` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("restyle-pipeline")
    except PackageNotFoundError:
        return "0+unknown"
