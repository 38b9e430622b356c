"""Settings of `jobs/train_restyle.py`: one frozen model, filled from a YAML file and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pipeline.choices import EARLIER_ALIGNMENT, Device, OptimiserName
from pipeline.config_loading import AlignmentFlags, ReadFlags, check_uris, fill
from pipeline.errors import ConfigError
from pipeline.storage.readers.pairs import pair_tars
from pipeline.training.degradations import parse_degradations

# Settings that may differ when a training is resumed: its length, its place and its logging. Any
# other setting would make it another training.
MAY_CHANGE = frozenset(
    {
        *("images", "report_every", "save_every", "save_minutes", "tensorboard"),
        *("output", "workers", "device", "align_workers", "restarts"),
    }
)

# Values of settings that are missing in the records of trainings older than the setting.
EARLIER_VALUES: Mapping[str, Any] = {
    "image_field": "all",
    **EARLIER_ALIGNMENT,
}


def _weight(description: str) -> Any:
    return Field(None, ge=0, allow_inf_nan=False, description=f"weight of {description}")


class TrainConfig(ReadFlags, AlignmentFlags):
    """Settings of an encoder's training.

    Weights and stages that are not set have the published values for the domain and the encoder
    type (`pipeline.training.paper_defaults`). Numbers of images count over all workers.
    """

    input: str = Field(description="images: folder, .tar, .parquet or a folder of these; any URI")
    target: str | None = Field(
        None,
        description="target images: the encoder learns to reconstruct, for each input image, the "
        "one of the same key (both are crops); any URI",
    )
    degrade: str | None = Field(
        None,
        description="damage to the encoder's input, while the target stays whole: "
        "downsample:8, blur:SIGMA, mask:PART, noise:SIGMA, gray, jpeg:QUALITY, or several, "
        "separated by commas",
    )
    output: str = Field(description="the run's folder: checkpoints, log, pictures, models; any URI")

    model: str | None = Field(
        None, description="model to continue: a bundle's name or URI, or an official .pt file"
    )
    generator: str | None = Field(
        None, description="instead: a StyleGAN2 .pt file (g_ema, latent_avg) for a new encoder"
    )
    encoder_type: str | None = Field(
        None,
        description="train a new encoder of this type for the generator: BackboneEncoder, "
        "ProgressiveBackboneEncoder, ResNetBackboneEncoder, ResNetProgressiveBackboneEncoder, "
        "GradualStyleEncoder, ResNetGradualStyleEncoder, Encoder4Editing; with --model also "
        "CompactEncoder",
    )
    one_pass: bool = Field(
        False, description="a new encoder that gets only the image (pSp, e4e), not ReStyle's"
    )
    backbone: str | None = Field(
        None, description="initial weights of a new encoder's body: IR-SE50 or ResNet34"
    )
    domain: str | None = Field(None, description="kind of images (default: the model's)")

    part_size: int = Field(256, ge=1, le=100_000, description="samples per file of crops")
    limit: int | None = Field(None, ge=1, description="only the first N samples of each shard")
    held_out: int = Field(256, ge=1, description="the last N crops, used for validation only")
    augment: Literal["flip", "photo"] = Field(
        "flip", description="flip as published, or also rotate, zoom, tint and blur"
    )

    images: int = Field(
        1_000_000, ge=1, description="images to train on in all; raise it to continue"
    )
    batch: int = Field(8, ge=1, description="images per batch, over all workers")
    steps: int | None = Field(
        None, ge=1, le=100, description="refinement steps per batch, each with a loss (default: 5)"
    )
    rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="maximum learning rate")
    warm_up: int = Field(100, ge=1, description="batches until the maximum rate")
    decay: bool = Field(False, description="decay the rate to zero over the second half")
    optimiser: OptimiserName = Field("ranger", description="Ranger as published, or Adam")
    clip: float | None = Field(None, gt=0, description="maximum gradient norm")
    horizon: int = Field(0, ge=0, description="batches that weights are averaged over; 0: off")

    l2: float | None = _weight("the squared error")
    l2_crop: float | None = _weight("the squared error of the inner face")
    lpips: float | None = _weight("LPIPS")
    lpips_crop: float | None = _weight("LPIPS of the inner face")
    identity: float | None = _weight("the face recognition term")
    identity_network: str = Field("dlib", description="dlib, or a weight file such as IR-SE50's")
    moco: float | None = _weight("the MoCo term, for domains without faces")
    moco_weights: str | None = Field(None, description="MoCo v2's weight file; any URI")
    w_norm: float | None = _weight("the distance of codes from the average")
    delta_norm: float | None = _weight("the distance of rows from the first row (e4e)")
    realness: float | None = _weight("the latent discriminator (e4e)")
    r1: float = Field(10.0, ge=0, description="weight of the discriminator's gradient penalty")
    codes: str | None = Field(
        None,
        description="folder of pairs-*.tar with real codes, for a generator without a mapping "
        "network; any URI",
    )
    progressive_start: int | None = Field(
        None, ge=0, description="e4e: images before the second row gets its own offset"
    )
    progressive_every: int | None = Field(None, ge=1, description="e4e: images per further row")

    report_every: int = Field(5_000, ge=1, description="images between validations and pictures")
    save_every: int = Field(50_000, ge=1, description="images between checkpoints")
    save_minutes: float = Field(10.0, ge=0, description="minutes between checkpoints")
    tensorboard: bool = Field(True, description="write TensorBoard events (extra `train`)")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of image order and all random draws")

    workers: int = Field(1, ge=1, description="training processes; gradients are averaged")
    device: Device = Field("auto", description="device of the workers")
    align_workers: int | None = Field(None, ge=1, description="maximum CPU actors that make crops")
    restarts: int = Field(3, ge=0, description="maximum restarts after a worker died")


def load_train_config(file: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of `file` overridden by `flags`; a flag of None keeps the file's value.

    Raises `ConfigError` that names every unknown, missing or invalid setting, and `InputError` for
    a URI that is empty or contains credentials and for a `codes` folder without tars of pairs.
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
        pair_tars(config.codes)  # the workers would find an error only after all crops are made
    return config


def _check(config: TrainConfig) -> None:
    """Raise `ConfigError` for settings that contradict each other."""
    problems = [
        (not config.model and not config.generator, "pass --model or --generator to start from"),
        (config.model and config.generator, "pass --model or --generator, not both"),
        (config.generator and not config.encoder_type, "--generator needs an --encoder-type"),
        (config.backbone and not config.encoder_type, "--backbone needs an --encoder-type"),
        (config.one_pass and not config.encoder_type, "--one-pass needs an --encoder-type"),
        (config.moco and not config.moco_weights, "the MoCo term needs --moco-weights"),
        (
            config.progressive_every and config.progressive_start is None,
            "--progressive-every needs --progressive-start",
        ),
        (
            config.batch % config.workers,
            f"--batch {config.batch} is not a multiple of --workers {config.workers}",
        ),
        (
            config.images < config.batch,
            f"--images {config.images} is less than --batch {config.batch}",
        ),
    ]
    for wrong, text in problems:
        if wrong:
            raise ConfigError(text)
