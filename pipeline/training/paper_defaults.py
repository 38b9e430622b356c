"""Published training settings, used where a config does not set them.

ReStyle (arXiv 2104.02699), sec. 4 and supplement; e4e (arXiv 2102.02766), sec. 4; for cartoons pSp
(arXiv 2008.00951) and its repository's command. `README.md` lists the differences. The published
options count batches of 8: 20,000 of them with a single w, 2,000 more for each row.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.inversion.restyle_loop import check_steps
from pipeline.models import RestyleModel, preset_of
from pipeline.models.state_files import read_state
from pipeline.training.config import TrainConfig
from pipeline.training.e4e import AdversaryPlan, Stages
from pipeline.training.encoder_task import EncoderPlan
from pipeline.training.losses import FeatureNetwork, ImageWeights, load_face_features
from pipeline.training.official_resume import Continuation

STEPS = 5
ADAM_BETA2 = 0.999
L2, LPIPS, IDENTITY, MOCO = 1.0, 0.8, 0.1, 0.5
# Cartoons, whose encoder gets photographs: pSp's published command, which ReStyle follows.
TOONIFY_IDENTITY, TOONIFY_W_NORM = 1.0, 0.025
DELTA_NORM, REALNESS = 2e-4, 0.1
BATCH = 8
STAGES = Stages(start=20_000 * BATCH, every=2_000 * BATCH)
PROGRESSIVE = (
    "ProgressiveBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
    "Encoder4Editing",  # single pass
)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def image_weights(config: TrainConfig, model: RestyleModel) -> ImageWeights:
    """Return the weights of the image terms.

    Faces have the identity term, other domains MoCo if its weight file is given.
    """
    faces = bool(preset_of(model.domain).has_faces)
    identity = TOONIFY_IDENTITY if is_toonify(model) else IDENTITY
    moco = MOCO if config.moco_weights and not faces else 0.0
    return ImageWeights(
        l2=_or(config.l2, L2),
        l2_crop=_or(config.l2_crop, 0.0),
        lpips=_or(config.lpips, LPIPS),
        lpips_crop=_or(config.lpips_crop, 0.0),
        identity=_or(config.identity, identity if faces else 0.0),
        moco=_or(config.moco, moco),
    )


def is_toonify(model: RestyleModel) -> bool:
    """Return whether the generator renders cartoons of the encoder's input faces."""
    return model.domain == "toonify"


def is_progressive(model: RestyleModel) -> bool:
    """Return whether the encoder is e4e's, with one w and offsets from it."""
    return model.architecture.encoder_type in PROGRESSIVE


def encoder_plan(
    config: TrainConfig, model: RestyleModel, previous: Continuation | None = None
) -> EncoderPlan:
    """Return steps, weights and stages; `previous` is the training that the model comes from.

    Raises `ConfigError` for steps that the encoder cannot make, and for stages with an encoder
    other than e4e's: its rows are not offsets from the first row.
    """
    steps = config.steps or (1 if model.single_pass else STEPS)
    check_steps(model, steps)
    e4e = is_progressive(model)
    stages = _stages(config, previous) if e4e else None
    if config.progressive_start is not None:
        if not e4e:
            raise ConfigError(
                f"--progressive-start is for e4e's encoders ({', '.join(PROGRESSIVE)}), "
                f"not for '{model.name}' with its {model.architecture.encoder_type}"
            )
        stages = Stages(config.progressive_start, config.progressive_every or STAGES.every)
    return EncoderPlan(
        steps=steps,
        images=image_weights(config, model),
        w_norm=_or(config.w_norm, TOONIFY_W_NORM if is_toonify(model) else 0.0),
        delta_norm=_or(config.delta_norm, DELTA_NORM if e4e else 0.0),
        stages=stages,
        images_before=previous.images if previous else 0,
    )


def _stages(config: TrainConfig, previous: Continuation | None) -> Stages | None:
    """Return the stages when the config has none; a finished e4e encoder has all rows free."""
    if config.encoder_type:
        return STAGES
    if previous is None:
        return None
    return previous.stages if previous.official else STAGES


def earlier_plan(config: TrainConfig, model: RestyleModel) -> EncoderPlan:
    """Return the plan of a training whose checkpoint has no defaults version.

    These trainings used the weights of faces for cartoons and started every e4e encoder with a
    single w.
    """
    plan = encoder_plan(config, model)
    faces = bool(preset_of(model.domain).has_faces)
    return replace(
        plan,
        images=replace(plan.images, identity=_or(config.identity, IDENTITY if faces else 0.0)),
        w_norm=_or(config.w_norm, 0.0),
        stages=plan.stages or (STAGES if is_progressive(model) else None),
    )


def adversary_plan(config: TrainConfig, model: RestyleModel) -> AdversaryPlan | None:
    """Return the settings of the latent discriminator; None when the training has none."""
    weight = _or(config.realness, REALNESS if is_progressive(model) else 0.0)
    return AdversaryPlan(weight=weight, r1=config.r1) if weight else None


def feature_networks(
    config: TrainConfig, weights: ImageWeights, device: str
) -> dict[str, FeatureNetwork]:
    """Load the networks of the terms in use. Raises `ModelError` if a file does not fit."""
    networks: dict[str, FeatureNetwork] = {}
    if weights.identity:
        networks["identity"] = load_face_features(config.identity_network, device)
    if weights.moco and config.moco_weights:
        from pipeline.metrics.moco import read_moco

        state, _ = read_state(config.moco_weights, "MoCo weights")
        networks["moco"] = read_moco(state, config.moco_weights, device)
    return networks
