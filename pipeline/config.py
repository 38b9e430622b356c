"""The settings of a run: one frozen model, filled from a YAML file and then from flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.choices import (
    CHECK_BELOW,
    SEARCH_PIXELS,
    BestStepBy,
    CodeType,
    Device,
    Faces,
    Fit,
    Icc,
    MethodName,
    Precision,
    Space,
)
from pipeline.config_loading import (
    IMAGE_COLUMN_MEANING,
    IMAGE_FIELD_MEANING,
    CheckBelow,
    DomainSetting,
    EncoderTypeSetting,
    EstimateLatentAvg,
    ImageField,
    SearchPixels,
    TurnsSetting,
    check_uris,
    fill,
    flag_of,
)
from pipeline.errors import printable
from pipeline.storage import FILES_PER_SHARD, ONE_IMAGE, ReadOptions, canonical_uri

OPTIMISING = ("optimize", "hybrid")
STEPS, AUTO_STEPS_AT_MOST, ITERATIONS = 5, 10, 300


class JobConfig(BaseModel):
    """Everything that `jobs/invert_dataset.py` can be told.

    The settings of the second and third group (method, faces) change rows, those of the fourth
    which image is in which shard: a table is continued only with the same ones. The last group
    says how the work is done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(description="folder, .tar, .parquet, or a folder of these; any fsspec URI")
    output: str = Field(description="the table's folder; any fsspec URI")
    target: str | None = Field(
        None,
        description="folder of images with the keys of the input, to compare the reconstructions "
        "with in place of the input itself: pairs of aligned crops, as (degraded, original)",
    )

    model: str = Field("demo", description="a bundle's name or URI, or an official .pt file")
    domain: DomainSetting = None
    encoder_type: EncoderTypeSetting = None
    estimate_latent_avg: EstimateLatentAvg = False
    method: MethodName = Field("restyle", description="how codes are found")
    steps: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] | None = Field(
        None,
        description="refinement steps a face, or auto: a face stops when it no longer changes; "
        "of optimize and hybrid how often the code is recorded (default 5, of encoder 1)",
    )
    max_steps: int | None = Field(
        None, ge=1, le=100, description="most steps of --steps auto (default 10)"
    )
    # An L2 in [-1, 1] lies between 0 and 4, and a step may raise it.
    stop_gain: float | None = Field(
        None,
        ge=-4,
        le=4,
        allow_inf_nan=False,
        description="of --steps auto: a face stops after a step that lowers its L2 by less "
        "(default 0.00167, calibrated on the demo model)",
    )
    stop_residual: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="of --steps auto: and that changes its code's median row by a smaller share "
        "(default 1)",
    )
    bootstrap: str | None = Field(
        None, description="model whose codes the steps start from: encoder bootstrapping"
    )
    bootstrap_steps: int | None = Field(
        None, ge=1, le=100, description="steps of the --bootstrap model (default 1)"
    )
    init: str | None = Field(
        None, description="table whose codes the steps start from, face by face"
    )
    where: str | None = Field(
        None, description="SQL condition on rows of the --init table: only these faces"
    )
    iterations: int | None = Field(
        None, ge=1, le=100_000, description="of optimize and hybrid (default 300)"
    )
    space: Space | None = Field(
        None, description="of optimize: one row for all layers, or a row each (default w+)"
    )
    distance_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of hybrid: pull towards the code it began at"
    )
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="of optimize and hybrid: their noise (default 0)"
    )

    faces: Faces = Field("largest", description="which faces of an image")
    prealigned: bool | None = Field(
        None, description="images are crops: resize, look for no face (default: by the domain)"
    )
    fit: Fit | None = Field(
        None, description="how a prealigned image of other proportions is resized (default stretch)"
    )
    turns: TurnsSetting = "auto"
    search_pixels: SearchPixels = SEARCH_PIXELS
    check_below: CheckBelow = CHECK_BELOW
    min_face: int = Field(32, ge=1, description="smallest face box side in pixels")
    max_pixels: int = Field(64_000_000, ge=1, description="largest image, checked before decoding")
    icc: Icc = Field(
        "apply",
        description="embedded colour profiles: converted to sRGB, or ignored as in the reference "
        "scripts",
    )
    identity: str | None = Field(
        None,
        description="identity network: dlib, none, or a weight file "
        "(default dlib for faces, none for other domains)",
    )
    best_step_by: BestStepBy = Field("lpips", description="what makes a step the best one")
    precision: Precision = Field(
        "float32", description="of a GPU's convolutions: tf32 is faster, and moves codes by 5e-4"
    )
    latent_dtype: CodeType = Field("float16", description="of w_plus")
    keep_steps: bool = Field(False, description="store the W+ code of every step too")
    keep_crops: bool = Field(False, description="store the aligned face as JPEG")
    keep_reconstructions: bool = Field(False, description="store the reconstruction as JPEG")
    files_per_shard: int = Field(
        FILES_PER_SHARD, ge=1, description="files of a folder that make one shard"
    )
    limit: int | None = Field(None, ge=1, description="only the first N samples, chosen or not")
    sniff: bool = Field(
        True, description="files without a known extension: images by their first bytes are read"
    )
    image_field: ImageField = Field(ONE_IMAGE, description=IMAGE_FIELD_MEANING)
    image_column: str | None = Field(None, description=IMAGE_COLUMN_MEANING)
    keep_columns: str | None = Field(
        None,
        description="fields of the input that become columns of the table, with commas between: "
        "Parquet columns, sidecars (txt, cls), fields of .json sidecars, label of a dataset.zip",
    )

    part_size: int = Field(256, ge=1, le=100_000, description="samples a part")
    device: Device = Field("auto", description="where faces are inverted")
    batch_size: int | None = Field(None, ge=1, description="faces a forward pass")
    align_workers: int | None = Field(None, ge=1, description="most CPU actors; default all cores")
    inverters: int | None = Field(None, ge=1, description="most inverters; default one a GPU")
    image_timeout: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="seconds one image may take to align"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="progress for people, or events as JSON lines, on stderr"
    )

    @field_validator("keep_columns", mode="after")
    @classmethod
    def _columns_once_each(cls, text: str | None) -> str | None:
        names = [name.strip() for name in (text or "").split(",")]
        if text is not None and (not all(names) or len({n.lower() for n in names}) < len(names)):
            raise ValueError("names with commas between, each of them once")
        return text and ",".join(names)

    @model_validator(mode="after")
    def _method_takes_what_is_set(self) -> Self:
        problem = next(_misfits(self), None)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def step_count(self) -> int:
        """Refinement steps a face makes; with `auto` the most."""
        if self.steps == "auto":
            return self.max_steps or AUTO_STEPS_AT_MOST
        if self.method == "encoder":
            return 1
        few = self.iteration_count if self.method in OPTIMISING else STEPS
        return self.steps or min(STEPS, few)

    @property
    def iteration_count(self) -> int:
        """Iterations of `optimize` and `hybrid`."""
        return self.iterations or ITERATIONS

    def layout(self) -> dict[str, Any]:
        """What fixes which images the table holds, and in which shards; JSON-ready."""
        return {
            "input": printable(canonical_uri(self.input)),
            "files_per_shard": self.files_per_shard,
            "limit": self.limit,
            "sniff": self.sniff,
            "image_field": self.image_field,
            "image_column": self.image_column,
        }

    @property
    def read_options(self) -> ReadOptions:
        """How the input is listed and its shards are read."""
        return ReadOptions(
            sniff=self.sniff, image_field=self.image_field, image_column=self.image_column
        )

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The names in `keep_columns`."""
        return tuple(self.keep_columns.split(",")) if self.keep_columns else ()


def _misfits(config: JobConfig) -> Iterator[str]:
    """What does not go together, a line each."""
    method, auto = config.method, config.steps == "auto"
    restyles, optimises = method == "restyle", method in OPTIMISING
    rules = [
        (auto and not restyles, f"--steps auto is for --method restyle, not {method}"),
        (method == "encoder" and config.steps not in (None, 1), "--method encoder makes one step"),
        (config.bootstrap and not restyles, f"--bootstrap is for --method restyle, not {method}"),
        (config.bootstrap and config.init, "--bootstrap and --init both say where steps start"),
        (config.bootstrap_steps and not config.bootstrap, "--bootstrap-steps needs --bootstrap"),
        (config.init and method in ("encoder", "optimize"), f"--method {method} takes no --init"),
        (config.where and not config.init, "--where chooses rows of a table: name it with --init"),
        (
            config.distance_weight is not None and method != "hybrid",
            f"--distance-weight is for --method hybrid, not {method}",
        ),
    ]
    rules.append((config.space and method != "optimize", f"--space is not for --method {method}"))
    if optimises and isinstance(config.steps, int):
        few = config.iteration_count
        told = (
            f"the code cannot be recorded {config.steps} times in {few} iterations: lower --steps"
        )
        rules.append((config.steps > few, told))
    for name in ("max_steps", "stop_gain", "stop_residual"):
        unused = getattr(config, name) is not None and not auto
        rules.append((unused, f"{flag_of(name)} is for --steps auto"))
    for name in ("iterations", "seed"):
        unused = getattr(config, name) is not None and not optimises
        told = f"{flag_of(name)} is for --method optimize or hybrid, not {method}"
        rules.append((unused, told))
    yield from (text for wrong, text in rules if wrong)


def load_config(file: str | None, flags: Mapping[str, Any]) -> JobConfig:
    """The file's settings with `flags` on top; flags that are None leave the file's value.

    Raises `ConfigError` that names every unknown, missing or unfit setting, and `InputError` for
    a URI that is empty or carries credentials.
    """
    config = fill(JobConfig, file, flags)
    check_uris(config, ("input", "output", "target", "model", "identity", "bootstrap", "init"))
    return config
