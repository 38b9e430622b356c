"""The settings of `jobs/train_restyle.py`: one frozen model, from a YAML file and then flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.choices import CHECK_BELOW, SEARCH_PIXELS, Device, Fit, Icc, OptimiserName
from pipeline.config_loading import (
    IMAGE_COLUMN_MEANING,
    IMAGE_FIELD_MEANING,
    CheckBelow,
    ImageField,
    SearchPixels,
    TurnsSetting,
    check_uris,
    fill,
)
from pipeline.errors import ConfigError
from pipeline.storage import FILES_PER_SHARD, ONE_IMAGE, ReadOptions
from pipeline.training.degradations import parse_degradations
from pipeline.training.real_codes import code_shards

# What a training that goes on may be told anew: how long, where and how it is watched. Any other
# setting would make it another training.
MAY_CHANGE = frozenset(
    {
        *("images", "report_every", "save_every", "save_minutes", "tensorboard"),
        *("output", "workers", "device", "align_workers", "restarts"),
    }
)

# What stands for a setting in trainings that were begun before it existed.
EARLIER_VALUES: Mapping[str, Any] = {
    "icc": "ignore",
    "image_field": "all",
    "turns": "none",
    "search_pixels": 0,
    "check_below": 0.0,
}


def _weight(description: str) -> Any:
    return Field(None, ge=0, allow_inf_nan=False, description=f"weight of {description}")


class TrainConfig(BaseModel):
    """Everything that the training of an encoder can be told.

    Weights and stages that are left out are the published ones of the domain and the encoder's
    type (`pipeline.training.paper_defaults`). Numbers of images count over all workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(description="images: folder, .tar, .parquet or a folder of these; any URI")
    target: str | None = Field(
        None,
        description="images of the same keys that the encoder is to give for those of the input "
        "(both are crops); any URI",
    )
    degrade: str | None = Field(
        None,
        description="what is done to what the encoder is shown, the target staying whole: "
        "downsample:8, blur:SIGMA, mask:PART, noise:SIGMA, gray, jpeg:QUALITY, or several, "
        "with commas between",
    )
    output: str = Field(description="the run's folder: checkpoints, log, pictures, models; any URI")

    model: str | None = Field(
        None, description="model to go on from: a bundle's name or URI, or an official .pt file"
    )
    generator: str | None = Field(
        None, description="instead: a StyleGAN2 .pt file (g_ema, latent_avg) for a fresh encoder"
    )
    encoder_type: str | None = Field(
        None,
        description="a fresh encoder of this type for the generator: BackboneEncoder, "
        "ProgressiveBackboneEncoder, ResNetBackboneEncoder, ResNetProgressiveBackboneEncoder, "
        "GradualStyleEncoder, ResNetGradualStyleEncoder, Encoder4Editing; of --model also "
        "CompactEncoder",
    )
    one_pass: bool = Field(
        False, description="a fresh encoder that sees the image alone (pSp, e4e), not ReStyle's"
    )
    backbone: str | None = Field(
        None, description="weights that a fresh encoder's body starts from: IR-SE50 or ResNet34"
    )
    domain: str | None = Field(None, description="what the images show (default: the model's own)")

    prealigned: bool | None = Field(None, description="images are crops (default: by the domain)")
    fit: Fit | None = Field(
        None, description="how a prealigned image of other proportions is resized"
    )
    turns: TurnsSetting = "auto"
    search_pixels: SearchPixels = SEARCH_PIXELS
    check_below: CheckBelow = CHECK_BELOW
    min_face: int = Field(32, ge=1, description="smallest face box side in pixels")
    icc: Icc = Field("apply", description="embedded colour profiles: to sRGB, or ignored")
    files_per_shard: int = Field(
        FILES_PER_SHARD, ge=1, description="files of a folder that make one shard"
    )
    sniff: bool = Field(
        True, description="files without a known extension: images by their first bytes are read"
    )
    image_field: ImageField = Field(ONE_IMAGE, description=IMAGE_FIELD_MEANING)
    image_column: str | None = Field(None, description=IMAGE_COLUMN_MEANING)
    part_size: int = Field(256, ge=1, le=100_000, description="samples a file of crops")
    limit: int | None = Field(None, ge=1, description="only the first N samples of each shard")
    held_out: int = Field(256, ge=1, description="the last N crops, for validation alone")
    augment: Literal["flip", "photo"] = Field(
        "flip", description="flip as published, or also turn, zoom, tint and soften"
    )

    images: int = Field(1_000_000, ge=1, description="images to see in all; raise it to go on")
    batch: int = Field(8, ge=1, description="images a batch, over all workers")
    steps: int | None = Field(
        None, ge=1, le=100, description="refinement steps a batch, a loss at each (default: 5)"
    )
    rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate at its peak")
    warm_up: int = Field(100, ge=1, description="batches until it is there")
    decay: bool = Field(False, description="let the rate fall to zero over the second half")
    optimiser: OptimiserName = Field("ranger", description="as published, or Adam")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    horizon: int = Field(0, ge=0, description="batches that weights are averaged over; 0: none")

    l2: float | None = _weight("the squared error")
    l2_crop: float | None = _weight("the squared error of the inner face")
    lpips: float | None = _weight("LPIPS")
    lpips_crop: float | None = _weight("LPIPS of the inner face")
    identity: float | None = _weight("the face recognition term")
    identity_network: str = Field("dlib", description="dlib, or a weight file such as IR-SE50's")
    moco: float | None = _weight("the MoCo term, for domains without faces")
    moco_weights: str | None = Field(None, description="MoCo v2's weight file; any URI")
    w_norm: float | None = _weight("the distance of codes from the average")
    delta_norm: float | None = _weight("e4e's distance of rows from the first")
    realness: float | None = _weight("e4e's latent discriminator")
    r1: float = Field(10.0, ge=0, description="of the discriminator's gradient penalty")
    codes: str | None = Field(
        None,
        description="folder of pairs-*.tar with real codes, for a generator without a mapping "
        "network; any URI",
    )
    progressive_start: int | None = Field(
        None, ge=0, description="e4e: images until the second row gets an offset of its own"
    )
    progressive_every: int | None = Field(None, ge=1, description="e4e: images a further row")

    report_every: int = Field(5_000, ge=1, description="images between validations and pictures")
    save_every: int = Field(50_000, ge=1, description="images between checkpoints")
    save_minutes: float = Field(10.0, ge=0, description="minutes between checkpoints")
    tensorboard: bool = Field(True, description="write TensorBoard events (extra `train`)")
    seed: int = Field(0, ge=0, lt=2**32, description="of the order of images and all draws")

    workers: int = Field(1, ge=1, description="training processes; gradients are averaged")
    device: Device = Field("auto", description="where they compute")
    align_workers: int | None = Field(None, ge=1, description="most CPU actors that cut crops")
    restarts: int = Field(3, ge=0, description="how often workers that die are started again")

    @property
    def read_options(self) -> ReadOptions:
        """How the input is listed and its shards are read."""
        return ReadOptions(
            sniff=self.sniff, image_field=self.image_field, image_column=self.image_column
        )


def load_train_config(file: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The file's settings with `flags` on top; flags that are None leave the file's value.

    Raises `ConfigError` that names every unknown, missing or unfit setting, and `InputError` for
    a URI that is empty or carries credentials, and where `codes` holds none.
    """
    config = fill(TrainConfig, file, flags)
    _check(config)
    check_uris(
        config,
        (
            *("input", "target", "output", "model", "generator", "backbone"),
            *("identity_network", "moco_weights", "codes"),
        ),
    )
    if config.degrade:
        parse_degradations(config.degrade)
    if config.codes:
        code_shards(config.codes)  # the workers read them when all crops are cut: too late to tell
    return config


def _check(config: TrainConfig) -> None:
    """Raise `ConfigError` for settings that do not go together."""
    problems = [
        (not config.model and not config.generator, "pass --model or --generator to start from"),
        (config.model and config.generator, "--model and --generator both say where to start"),
        (config.generator and not config.encoder_type, "--generator needs an --encoder-type"),
        (config.backbone and not config.encoder_type, "--backbone needs an --encoder-type"),
        (config.one_pass and not config.encoder_type, "--one-pass needs an --encoder-type"),
        (config.moco and not config.moco_weights, "the MoCo term needs --moco-weights"),
        (
            config.progressive_every and config.progressive_start is None,
            "progressive_every needs --progressive-start",
        ),
        (
            config.batch % config.workers,
            f"a batch of {config.batch} does not divide among {config.workers} workers",
        ),
        (
            config.images < config.batch,
            f"--images {config.images} does not fill a batch of {config.batch}",
        ),
    ]
    for wrong, text in problems:
        if wrong:
            raise ConfigError(text)
