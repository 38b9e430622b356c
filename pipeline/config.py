"""The settings of a run: one frozen model, filled from a YAML file and then from flags."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import fsspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError
from pipeline.storage import canonical_uri


class JobConfig(BaseModel):
    """Everything that `jobs/invert_dataset.py` can be told.

    The settings of the second group change rows, those of the third which image is in which
    shard: a table is continued only with the same ones. The last group says how the work is done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(description="folder, .tar, .parquet, or a folder of these; any fsspec URI")
    output: str = Field(description="the table's folder; any fsspec URI")

    model: str = Field("demo", description="a bundle's name or URI, or an official .pt file")
    steps: int = Field(5, ge=1, le=100, description="refinement steps a face")
    faces: Literal["largest", "all"] = Field("largest", description="which faces of an image")
    prealigned: bool = Field(False, description="images are aligned crops: resize, detect nothing")
    min_face: int = Field(32, ge=1, description="smallest face box side in pixels")
    max_pixels: int = Field(64_000_000, ge=1, description="largest image, checked before decoding")
    identity: str = Field("dlib", description="identity network: dlib, none, or a weight file")
    best_step_by: Literal["lpips", "l2", "id_similarity", "last"] = Field(
        "lpips", description="what makes a step the best one"
    )
    latent_dtype: Literal["float16", "float32"] = Field("float16", description="of w_plus")
    keep_steps: bool = Field(False, description="store the W+ code of every step too")
    keep_crops: bool = Field(False, description="store the aligned face as JPEG")
    keep_reconstructions: bool = Field(False, description="store the reconstruction as JPEG")
    files_per_shard: int = Field(1024, ge=1, description="files of a folder that make one shard")
    limit: int | None = Field(None, ge=1, description="only the first N samples")

    part_size: int = Field(256, ge=1, le=100_000, description="samples a part")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where faces are inverted")
    batch_size: int | None = Field(None, ge=1, description="faces a forward pass")
    align_workers: int | None = Field(None, ge=1, description="most CPU actors; default all cores")
    inverters: int | None = Field(None, ge=1, description="most inverters; default one a GPU")
    image_timeout: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="seconds one image may take to align"
    )

    def layout(self) -> dict[str, Any]:
        """What fixes which images the table holds, and in which shards; JSON-ready."""
        return {"files_per_shard": self.files_per_shard, "limit": self.limit}


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, JobConfig.model_fields, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting '{name}'{_nearest(name)}")
        elif problem["type"] == "missing":
            lines.append(f"'{name}' is required: pass --{name} or put it in the config file")
        else:
            lines.append(f"'{name}': {problem['msg'].lower()} (got {problem['input']!r})")
    return "; ".join(lines)


def read_config_file(uri: str) -> dict[str, Any]:
    """The settings in the YAML file at `uri` (any fsspec URI).

    Raises `ConfigError` where it cannot be read or is not a mapping.
    """
    try:
        with fsspec.open(uri, "r") as file:
            settings = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file '{uri}': {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"'{uri}' is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"'{uri}' must hold 'name: value' lines, got {type(settings).__name__}")
    return settings


def load_config(file: str | None, flags: Mapping[str, Any]) -> JobConfig:
    """The file's settings with `flags` on top; flags that are None leave the file's value.

    Raises `ConfigError` that names every unknown, missing or unfit setting, and `InputError` for
    a URI that is empty or carries credentials.
    """
    settings = read_config_file(file) if file else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        config = JobConfig(**settings)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except TypeError as error:  # keys that are not strings
        raise ConfigError(f"setting names must be text: {error}") from None
    for uri in (config.input, config.output, config.model, config.identity):
        canonical_uri(uri)  # refuses one with credentials, before it is written anywhere
    return config
