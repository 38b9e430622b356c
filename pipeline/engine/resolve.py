"""Resolve a config to settings, models and metrics: what all workers use and the table records."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.alignment import AlignmentSettings
from pipeline.choices import IdentitySteps
from pipeline.config import JobConfig
from pipeline.config_loading import AlignmentFlags
from pipeline.engine.address import in_cluster
from pipeline.engine.inverter import BATCH, InvertSettings, evaluator_of
from pipeline.errors import ConfigError, TableError, printable
from pipeline.inversion import (
    Arithmetic,
    OptimizeSettings,
    StopRule,
    arithmetic,
    latent_spread,
    ready_device,
)
from pipeline.inversion.methods import OPTIMISATIONS, Method
from pipeline.models import RestyleModel, Treatment, bundle_names, load_model, treatment_for
from pipeline.models.files import hints_of
from pipeline.storage import Store, canonical_uri
from pipeline.table import Columns, TableSpec, open_initial_table
from pipeline.table.initial_codes import check_condition
from pipeline.table.schema import IDENTITY
from pipeline.table.spec import EARLIER_VALUES, SPEC_NAME, read_spec

# Increase it with each change of what the same weights and settings compute.
NUMERICS_VERSION = 2
SAMPLES_PER_PART = {"cpu": 64, "cuda": 256}
_NAMES = {"dlib", "none", *bundle_names()}  # of networks; other values are paths


@dataclass(frozen=True)
class ResolvedJob:
    """Resolved settings of all stages; small, and equal in every process."""

    alignment: AlignmentSettings
    inversion: InvertSettings
    spec: TableSpec
    part_size: int  # samples per part
    treatment: str = ""  # how images are prepared for the model, in one line
    target: str | None = None  # folder of the images to compare with, if not the input itself


@dataclass(frozen=True)
class _Networks:
    """Model of a job, and the origin of its initial codes."""

    model: RestyleModel
    first: str | None  # model of the first steps, if another one
    origin: dict[str, Any]  # of the initial codes, for the fingerprint


def resolve_job(config: JobConfig, kept: Mapping[str, str] | None = None) -> ResolvedJob:
    """Resolve a config; loads the model and the metric networks once for what the table records.

    `kept` are the types of the columns that are copied from the input.

    Raises a `RequestError` if settings, models and tables do not fit together.
    """
    precision = _arithmetic(config)
    networks = _networks(config)
    model = networks.model
    method = make_method(config, model)
    treatment = treatment_for(
        model, prealigned=config.prealigned, identity=config.identity, fit=config.fit
    )
    if config.target and not treatment.prealigned:
        raise ConfigError(
            "--target needs pairs of crops that match pixel by pixel: align both "
            "first (--keep-crops keeps crops), and add --prealigned"
        )
    alignment = alignment_settings(
        config,
        model,
        treatment,
        faces=config.faces,
        max_pixels=config.max_pixels,
        row_timeout_s=config.image_timeout,
    )
    earlier = _earlier_spec(config)
    part_size = _part_size(config, earlier)
    columns = Columns(
        n_styles=model.n_styles,
        w_plus_dtype=config.latent_dtype,
        all_steps=config.keep_steps,
        aligned_jpeg=config.keep_crops,
        reconstruction_jpeg=config.keep_reconstructions,
        turn_deg=alignment.records_turns,
        kept=tuple((kept or {}).items()),
        identity=_keeps_identity(config, treatment.identity, earlier),
    )
    inversion = InvertSettings(
        model=config.model,
        hints=hints_of(config.model_dump()),
        method=method,
        first=networks.first,
        initial_codes="none" if not config.init else "chosen" if config.where else "all",
        identity=treatment.identity,
        identity_steps=_identity_steps(config, method, treatment.identity),
        best_step_by=config.best_step_by,
        device=config.device,
        precision=precision,
        largest_code=float(np.finfo(config.latent_dtype).max),
        batch_size=config.batch_size,
        keep_steps=config.keep_steps,
        keep_crops=config.keep_crops,
        keep_reconstructions=config.keep_reconstructions,
        keep_identity=columns.identity,
    )
    meter = evaluator_of(inversion, "cpu")
    spec = TableSpec(
        columns=columns,
        settings={
            "numerics": NUMERICS_VERSION,
            "model": model.fingerprint,
            "method": method.to_dict() | networks.origin,
            "steps": "auto" if method.stop else method.steps,
            "alignment": alignment.result_settings(),
            # The definition contains the hash of the weights, not the file name.
            "identity": meter.identity_definition,
            "identity_steps": inversion.identity_steps,
            "best_step_by": config.best_step_by,
            "precision": precision,
            **({"target": printable(canonical_uri(config.target))} if config.target else {}),
        },
        layout=config.layout(),
        config=_from_anywhere(config)
        | {
            "precision": precision,
            "identity_steps": inversion.identity_steps,
            "part_size": part_size,
        },
        model=model.metadata,
        metrics=meter.definitions | _end_of_faces(method),
    )
    about = treatment.description + _borrowed_bound(config)
    return ResolvedJob(alignment, inversion, spec, part_size, about, config.target)


def _keeps_identity(config: JobConfig, identity: str, earlier: TableSpec | None) -> bool:
    """Return whether the table has the column `identity`.

    By default a table that exists keeps its columns, and a new one has it where `identity` names a
    network, unless a field of the input has that name.
    """
    if config.keep_identity and identity == "none":
        raise ConfigError("--keep-identity needs an identity network: add --identity dlib")
    if config.keep_identity is not None:
        return config.keep_identity
    if earlier:
        return earlier.columns.identity
    return identity != "none" and IDENTITY not in map(str.lower, config.kept_names)


def _part_size(config: JobConfig, earlier: TableSpec | None) -> int:
    """Return the samples of a part: by default those of the table, or of a new one by the device.

    One inverter does a whole part: on CPUs large parts leave cores idle at the end of a job. GPUs
    finish so many small parts that the driver would be the limit.
    """
    if config.part_size is not None:
        return config.part_size
    if earlier:
        recorded = earlier.config.get("part_size")
        return recorded if type(recorded) is int and recorded > 0 else SAMPLES_PER_PART["cuda"]
    device = config.device if in_cluster() else ready_device(config.device, config.precision)
    return SAMPLES_PER_PART["cpu" if device == "cpu" else "cuda"]


def _earlier_spec(config: JobConfig) -> TableSpec | None:
    """Return the description of the table that the job continues, None of a new one."""
    store = Store(config.output)
    if store.exists(SPEC_NAME):
        with suppress(TableError):  # a damaged one is refused when it is opened for writing
            return read_spec(store)
    return None


def _arithmetic(config: JobConfig) -> Arithmetic:
    """Return the arithmetic of the inverters.

    The GPUs of a cluster are not known here: with `auto` they have bfloat16 if `--device cuda` says
    that there are some.
    """
    gradients = config.method in OPTIMISATIONS
    if not in_cluster():
        device = ready_device(config.device, config.precision)
        return arithmetic(config.precision, device, gradients=gradients)
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if config.device == "cuda" and not gradients else "float32"


def _identity_steps(config: JobConfig, method: Method, identity: str) -> IdentitySteps:
    """Return the steps whose identity is measured; `all` where both choices are the same."""
    if identity == "none" or method.rule.max_steps == 1 or config.best_step_by == "id_similarity":
        return "all"
    return config.identity_steps or "best"


def _from_anywhere(config: JobConfig) -> dict[str, Any]:
    """Return the config for the table, with absolute paths.

    In a Ray job relative paths stay: the working directory is a temporary copy.
    """
    values = config.model_dump(exclude_none=True)
    if not in_cluster():
        for name in {
            "input",
            "output",
            "target",
            "init",
            "model",
            "bootstrap",
            "identity",
        } & values.keys():
            if values[name] not in _NAMES:
                values[name] = canonical_uri(values[name])
    return values


def resolved_config(config: JobConfig, job: ResolvedJob) -> dict[str, Any]:
    """Return every setting of a config with the value that `job` resolved; JSON-ready.

    None for unused settings, and for the batch size on a cluster whose device is not known yet.
    """
    method, alignment = job.inversion.method, job.alignment
    precision = job.inversion.precision
    device = config.device if in_cluster() else ready_device(config.device, precision)
    values = config.model_dump() | {
        "prealigned": alignment.prealigned,
        "fit": alignment.fit if alignment.prealigned else None,
        "identity": job.inversion.identity,
        "identity_steps": job.inversion.identity_steps,
        "precision": precision,
        "keep_identity": job.spec.columns.identity,
        "part_size": job.part_size,
        "batch_size": config.batch_size or BATCH.get(device),
    }
    values |= dict.fromkeys(alignment.unused)
    if method.stop:
        rule = method.stop
        used: dict[str, Any] = {
            "max_steps": rule.max_steps,
            "stop_gain": rule.improvement,
            "stop_residual": rule.residual,
        }
    else:
        used = {"steps": method.steps}
    if config.bootstrap:
        used["bootstrap_steps"] = method.bootstrap_steps
    if method.name in OPTIMISATIONS:
        descent = method.descent
        used |= {"iterations": descent.iterations, "space": descent.space, "seed": method.seed}
        if method.name == "hybrid":
            used["distance_weight"] = descent.distance_weight
    return values | used


def make_method(config: JobConfig, model: RestyleModel) -> Method:
    """Return the method of the config with its settings; `ConfigError` if `model` cannot use it."""
    method = Method(
        config.method,
        config.step_count,
        stop=_stop_rule(config) if config.steps == "auto" else None,
        bootstrap_steps=(config.bootstrap_steps or 1) if config.bootstrap else 0,
        optimisation=_descent(config, model) if config.method in OPTIMISATIONS else None,
        seed=config.seed or 0,
    )
    method.check(model, started=bool(config.init))
    return method


def _stop_rule(config: JobConfig) -> StopRule:
    own = StopRule()
    return replace(
        own,
        improvement=own.improvement if config.stop_gain is None else config.stop_gain,
        residual=own.residual if config.stop_residual is None else config.stop_residual,
        max_steps=config.step_count,
    )


def _end_of_faces(method: Method) -> dict[str, str]:
    """Return the definition of the column `converged`, if the method has one."""
    if method.name != "restyle":
        return {}
    rule = method.rule
    return {
        "converged": f"a step lowered the face's L2 by less than {rule.improvement:g} and changed "
        f"its code's median row by a share under {rule.residual:g}, where --steps auto with these "
        "bounds stops"
    }


def _borrowed_bound(config: JobConfig) -> str:
    """Return a warning about the bound of `--steps auto`, which is calibrated on bundled models."""
    if config.steps != "auto" or config.stop_gain is not None or config.model in bundle_names():
        return ""
    return (
        f"; --steps auto stops at a gain under {StopRule().improvement:g}, which was calibrated on "
        "the demo model: find this model's own with jobs/calibrate_stop.py, pass it as --stop-gain"
    )


def _descent(config: JobConfig, model: RestyleModel) -> OptimizeSettings:
    own = OPTIMISATIONS[config.method]
    pull = config.distance_weight
    return replace(
        own,
        space=config.space or own.space,
        iterations=config.iteration_count,
        distance_weight=own.distance_weight if pull is None else pull,
        # Rounded, as the last digits differ between machines and would change the fingerprint.
        spread=float(f"{latent_spread(model):.3g}"),
    )


def alignment_settings(
    config: AlignmentFlags, model: RestyleModel, treatment: Treatment, **more: Any
) -> AlignmentSettings:
    """Return the settings of alignment for a model; `more` are those that a training lacks."""
    return AlignmentSettings(
        prealigned=treatment.prealigned,
        fit=treatment.fit,
        turns=config.turns,
        search_pixels=config.search_pixels,
        check_below=config.check_below,
        coarse_side=config.coarse_side,
        min_face_px=config.min_face,
        icc=config.icc,
        output_size=model.input_size,
        **more,
    )


def _networks(config: JobConfig) -> _Networks:
    """Load the model, and check that its initial codes fit it."""
    model = load_model(config.model, **hints_of(config.model_dump()))
    if config.bootstrap:
        first = load_model(config.bootstrap)
        _check_pair(model, first)
        Method("restyle").check(first)
        return _Networks(model, config.bootstrap, {"bootstrap": first.fingerprint})
    if config.init:
        return _started_from_table(config, model, config.init)
    return _Networks(model, None, {})


def _started_from_table(config: JobConfig, model: RestyleModel, init: str) -> _Networks:
    table = open_initial_table(init)
    if config.where:
        check_condition(table, config.where)
    spec = table.spec
    _check_layout(init, spec.layout, config.layout())
    origin = {"init": spec.fingerprint, "where": config.where}
    rendered_by_model = spec.settings["model"] == model.fingerprint or config.method == "hybrid"
    surplus = spec.columns.n_styles - model.n_styles
    if surplus < 0 or (surplus and rendered_by_model):
        raise ConfigError(
            f"the table '{init}' has codes of {spec.columns.n_styles} rows, the model "
            f"'{model.name}' takes {model.n_styles}"
        )
    if rendered_by_model:
        return _Networks(model, None, origin)
    # The input of the first step is the image that the model of the table renders.
    uri = str(spec.config["model"])
    first = load_model(uri, **hints_of(spec.config))
    _check_pair(model, first)
    if first.fingerprint != spec.settings["model"]:
        raise ConfigError(
            f"the table '{init}' was made with other weights than '{uri}' has today: its codes "
            "cannot be rendered as initial images"
        )
    return _Networks(model, uri, origin)


def _check_layout(init: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if shards of the same id hold other images in the table `init`.

    An imported table has no input in its layout: its shards are compared one by one.
    """
    names = ("sniff", "image_field", "image_column")
    earlier = {name: EARLIER_VALUES[f"layout.{name}"] for name in names if "input" in theirs}
    theirs = {**earlier, **theirs}
    for name in ("input", "files_per_shard", *names):
        if name in theirs and theirs[name] != ours[name]:
            raise ConfigError(
                f"the table '{init}' was made with {name} '{theirs[name]}', and this run has "
                f"'{ours[name]}': its codes belong to other images"
            )


def _check_pair(model: RestyleModel, first: RestyleModel) -> None:
    """Raise `ConfigError` if `model` cannot refine the codes of `first`.

    `model` takes the first rows of a code; the further ones are styles of levels that it lacks.
    """
    for name in ("n_styles", "input_size"):
        ours, theirs = getattr(model, name), getattr(first, name)
        surplus_rows = name == "n_styles" and ours < theirs
        if ours != theirs and not surplus_rows:
            raise ConfigError(
                f"the model '{model.name}' ({name} {ours}) cannot refine codes of '{first.name}' "
                f"({name} {theirs})"
            )
