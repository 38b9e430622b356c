"""Settings of a run: one frozen model, filled from a YAML file and then from flags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.choices import (
    BestStepBy,
    CodeType,
    Device,
    EncoderType,
    Faces,
    IdentitySteps,
    MethodName,
    Precision,
    Space,
)
from pipeline.config_loading import (
    AlignmentFlags,
    ReadFlags,
    check_uris,
    fill,
    flag_of,
)
from pipeline.errors import printable
from pipeline.storage import canonical_uri

OPTIMISING = ("optimize", "hybrid")
# Settings of a model, for facts that its file may lack.
MODEL_SETTINGS = ("domain", "encoder_type", "estimate_latent_avg")
STEPS, AUTO_STEPS_AT_MOST, ITERATIONS = 5, 10, 300


class JobConfig(ReadFlags, AlignmentFlags):
    """Settings of `jobs/invert_dataset.py`.

    Settings of alignment and of the second and third group (method, faces) change rows, those of
    reading and `limit` decide which image is in which shard: a table can only be continued with
    the same values. The last group controls execution.
    """

    input: str = Field(description="folder, .tar, .parquet, or a folder of these; any fsspec URI")
    output: str = Field(description="the table's folder; any fsspec URI")
    target: str | None = Field(
        None,
        description="folder of images with the keys of the input, to compare the reconstructions "
        "with in place of the input itself: pairs of aligned crops, as (degraded, original)",
    )

    model: str = Field("demo", description="a bundle's name or URI, or an official .pt file")
    domain: str | None = Field(
        None,
        min_length=1,
        description="what the model's images show: faces, cars, church, ...; any other word: "
        "images without faces (default: the domain in the model's file)",
    )
    encoder_type: EncoderType | None = Field(
        None, description="encoder type of a checkpoint whose options name none"
    )
    estimate_latent_avg: bool = Field(
        False,
        description="for a checkpoint without an average latent: use the mean of 100,000 mapped "
        "z codes",
    )
    method: MethodName = Field("restyle", description="how codes are computed")
    steps: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] | None = Field(
        None,
        description="refinement steps per face, or auto: a face stops when it no longer changes; "
        "for optimize and hybrid how often the code is recorded (default 5, for encoder 1)",
    )
    max_steps: int | None = Field(
        None, ge=1, le=100, description="maximum number of steps of --steps auto (default 10)"
    )
    # L2 of images in [-1, 1] is between 0 and 4, and a step may increase it.
    stop_gain: float | None = Field(
        None,
        ge=-4,
        le=4,
        allow_inf_nan=False,
        description="with --steps auto a face stops after a step that lowers its L2 by less than "
        "this (default 0.00167, calibrated on the demo model)",
    )
    stop_residual: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="with --steps auto: and that changes the median row of its code by less than "
        "this share (default 1)",
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
        None, ge=1, le=100_000, description="iterations of optimize and hybrid (default 300)"
    )
    space: Space | None = Field(
        None,
        description="for optimize: w is one row for all layers, w+ one row per layer (default w+)",
    )
    distance_weight: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="for hybrid: weight of the distance to the initial code",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="seed of the noise of optimize and hybrid (default 0)"
    )

    faces: Faces = Field("largest", description="which faces of an image are inverted")
    max_pixels: int = Field(
        64_000_000, ge=1, description="maximum pixels of an image, checked before decoding"
    )
    identity: str | None = Field(
        None,
        description="identity network: dlib, none, or a weight file "
        "(default dlib for faces, none for other domains)",
    )
    best_step_by: BestStepBy = Field("lpips", description="metric that selects the best step")
    identity_steps: IdentitySteps | None = Field(
        None,
        description="steps whose identity is measured: the best one, or all "
        "(default best; all with --best-step-by id_similarity)",
    )
    precision: Precision = Field(
        "auto",
        description="arithmetic of the networks: bfloat16 is fastest and moves codes by 5e-3, tf32 "
        "(GPUs alone) by 5e-4; auto is bfloat16 on a GPU that has it, else float32",
    )
    latent_dtype: CodeType = Field("float16", description="stored dtype of w_plus")
    keep_steps: bool = Field(False, description="store the W+ code of every step too")
    keep_crops: bool = Field(False, description="store the aligned face as JPEG")
    keep_reconstructions: bool = Field(False, description="store the reconstruction as JPEG")
    keep_identity: bool | None = Field(
        None,
        description="store the identity vector of the face, for searches (default: where an "
        "identity network is used)",
    )
    limit: int | None = Field(
        None, ge=1, description="use only the first N samples, whether or not they are selected"
    )
    keep_columns: str | None = Field(
        None,
        description="fields of the input that become columns of the table, separated by commas: "
        "Parquet columns, sidecars (txt, cls), fields of .json sidecars, label of a dataset.zip",
    )

    part_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="samples per part; default that of the table, of a new one 256, or 64 where "
        "CPUs invert",
    )
    device: Device = Field("auto", description="device that inverts faces")
    batch_size: int | None = Field(None, ge=1, description="faces per forward pass")
    align_workers: int | None = Field(
        None, ge=1, description="maximum number of CPU actors; default all cores"
    )
    inverters: int | None = Field(
        None, ge=1, description="maximum number of inverters; default one per GPU"
    )
    image_timeout: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="maximum seconds to align one image"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="progress for people, or events as JSON lines, on stderr"
    )

    @field_validator("keep_columns", mode="after")
    @classmethod
    def _columns_once_each(cls, text: str | None) -> str | None:
        names = [name.strip() for name in (text or "").split(",")]
        if text is not None and (not all(names) or len({n.lower() for n in names}) < len(names)):
            raise ValueError("names must be separated by commas, each given once")
        return text and ",".join(names)

    @model_validator(mode="after")
    def _method_takes_what_is_set(self) -> Self:
        problem = next(_misfits(self), None)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def step_count(self) -> int:
        """Refinement steps per face; with `auto` the maximum."""
        if self.steps == "auto":
            return self.max_steps or AUTO_STEPS_AT_MOST
        if self.method == "encoder":
            return 1
        most = self.iteration_count if self.method in OPTIMISING else STEPS
        return self.steps or min(STEPS, most)

    @property
    def iteration_count(self) -> int:
        """Iterations of `optimize` and `hybrid`."""
        return self.iterations or ITERATIONS

    def layout(self) -> dict[str, Any]:
        """Return the settings that decide which images are in which shards, as JSON values."""
        return {
            "input": printable(canonical_uri(self.input)),
            "files_per_shard": self.files_per_shard,
            "limit": self.limit,
            "sniff": self.sniff,
            "image_field": self.image_field,
            "image_column": self.image_column,
        }

    @property
    def kept_names(self) -> tuple[str, ...]:
        """Names in `keep_columns`."""
        return tuple(self.keep_columns.split(",")) if self.keep_columns else ()


def _misfits(config: JobConfig) -> Iterator[str]:
    """Yield one line for each combination of settings that is invalid."""
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
        (
            config.best_step_by == "id_similarity" and config.identity_steps == "best",
            "--best-step-by id_similarity needs the identity of every step: --identity-steps all",
        ),
        (
            optimises and config.precision == "bfloat16",
            f"--precision bfloat16 has no gradients, which --method {method} needs",
        ),
        (
            config.keep_identity and config.identity == "none",
            "--keep-identity needs an identity network, not --identity none",
        ),
        (config.space and method != "optimize", f"--space is not for --method {method}"),
    ]
    if optimises and isinstance(config.steps, int):
        iterations = config.iteration_count
        message = (
            f"the code cannot be recorded {config.steps} times in {iterations} iterations: "
            "lower --steps"
        )
        rules.append((config.steps > iterations, message))
    for name in ("max_steps", "stop_gain", "stop_residual"):
        unused = getattr(config, name) is not None and not auto
        rules.append((unused, f"{flag_of(name)} is for --steps auto"))
    for name in ("iterations", "seed"):
        unused = getattr(config, name) is not None and not optimises
        message = f"{flag_of(name)} is for --method optimize or hybrid, not {method}"
        rules.append((unused, message))
    yield from (text for wrong, text in rules if wrong)


def load_config(file: str | None, flags: Mapping[str, Any]) -> JobConfig:
    """Return the settings of `file` with `flags` on top; flags that are None are not given.

    Raises `ConfigError` that names every unknown, missing or invalid setting, and `InputError` for
    a URI that is empty or carries credentials.
    """
    config = fill(JobConfig, file, flags)
    check_uris(config, ("input", "output", "target", "model", "identity", "bootstrap", "init"))
    return config


def fill_part(names: Iterable[str], flags: Mapping[str, Any]) -> JobConfig:
    """Return the settings `names` among the flags of a job that takes only some; raises as `fill`.

    The input and output of the config are empty.
    """
    return fill(JobConfig, None, {"input": "", "output": "", **{n: flags[n] for n in names}})
