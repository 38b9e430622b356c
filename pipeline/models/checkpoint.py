"""Read official ReStyle, pSp and e4e checkpoints: `{"state_dict", "latent_avg", "opts"}`.

Channel widths, output size, input channels and number of rows come from the shapes of the weights,
and `opts` must agree with them. `opts` supplies what shapes cannot: encoder type and domain. Files
of a StyleGAN2 generator alone are read too.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.choices import OFFICIAL_TYPES
from pipeline.errors import ModelError
from pipeline.models.domains import domain_note, domain_of, preset_of
from pipeline.models.encoders import (
    NO_ENCODER,
    fitting_encoders,
    official_arguments,
)
from pipeline.models.model import Architecture, ModelCard, RestyleModel
from pipeline.models.official_layout import Parts, read_parts
from pipeline.models.safe_globals import safe_names
from pipeline.models.stylegan2 import LATENT_DIM, Generator
from pipeline.models.weights import assemble

_LOG = logging.getLogger(__name__)

ADVICE = "download it again, or give another file"
RESTYLE_CHANNELS = 6  # target and reconstruction; single-pass encoders see 3
# Weights hardly compress, and torch stores the entries of its zip files uncompressed.
_MAX_UNPACKED, _FREE_BYTES = 4, 64 << 20
# Mapped z codes whose mean estimates an average latent: as many as the official scripts use.
CODES, SEED = 100_000, 0
_CODES_AT_ONCE = 4096
ESTIMATED = f"estimated from {CODES} mapped z codes, seed {SEED}"
NO_AVERAGE = "absent from the checkpoint, which does not start from it: zeros are used"


def read_checkpoint(
    file: IO[bytes], source: str, stand_ins: Mapping[str, Callable[..., Any]] | None = None
) -> dict[str, Any]:
    """Return the dictionary in an open official `.pt` file, without executing any code in it.

    numpy's scalars and arrays and paths are returned as inert records
    (`pipeline.models.safe_globals`), and so are the classes that `stand_ins` maps to records.
    Raises `ModelError` if the file is damaged, is not a checkpoint, or unpacks to many times its
    size, and if it holds any class other than these, tensors, plain containers and
    `argparse.Namespace`. Errors that `file` itself raises are passed on.
    """
    content = read_inert(file, source, stand_ins)
    if not isinstance(content, dict):
        raise ModelError(f"{source}: holds a {type(content).__name__}, expected a checkpoint dict")
    return content


def read_inert(
    file: IO[bytes], source: str, stand_ins: Mapping[str, Callable[..., Any]] | None = None
) -> Any:
    """Return the object in an open `.pt` file of any kind, as `read_checkpoint` reads a dictionary.

    Raises the same errors, except for an object that is not a dictionary.
    """
    refuse_bomb(file, source)
    try:
        with (
            torch.serialization.safe_globals(safe_names(stand_ins or {})),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch warns about a protocol before it refuses it
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds the class {refused[1]}" if refused else "it is not a file of tensors"
        raise ModelError(f"{source}: refused, {what}; {ADVICE}") from error
    except Exception as error:  # torch's unpickler raises any type for a damaged file
        if failed := _failed_read(error):
            raise failed from None
        raise ModelError(f"{source}: damaged, or not a PyTorch checkpoint; {ADVICE}") from error
    return content


def refuse_bomb(file: IO[bytes], source: str) -> None:
    """Raise `ModelError` if the entries of a zip file unpack to many times the file's size."""
    try:
        with zipfile.ZipFile(file) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, EOFError):
        return  # torch's older layout, or damaged: torch.load reports it
    except OSError as error:
        if failed := _failed_read(error):
            raise failed from None
        return
    finally:
        size = file.seek(0, 2)
        file.seek(0)
    if unpacked > _MAX_UNPACKED * size + _FREE_BYTES:
        raise ModelError(
            f"{source}: refused, its {size} bytes unpack to {unpacked}, more than weights do; "
            f"{ADVICE}"
        )


def _failed_read(error: BaseException | None) -> OSError | None:
    """Return the storage error that caused `error`; torch's zip reader wraps it in others."""
    while error is not None:
        # EINVAL: the file's own tables point before its beginning, so the file is damaged.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            return error
        error = error.__cause__ or error.__context__
    return None


def load_checkpoint(
    checkpoint: Mapping[str, Any],
    *,
    encoder_type: str | None = None,
    domain: str | None = None,
    estimate_latent_avg: bool = False,
    card: ModelCard | None = None,
    source: str = "checkpoint",
) -> RestyleModel:
    """Return the model in an official dictionary, sharing the memory of its tensors.

    Keys are read as by the official loader: `encoder.*` and `decoder.*` have to fit; others are
    ignored and listed in the card's notes. A generator alone (`g_ema`) becomes a model without an
    encoder. `encoder_type` and `domain` are for checkpoints whose `opts` do not name them; the
    domain decides the shape of the encoder's input, which is wide for cars. With
    `estimate_latent_avg` a missing average latent is estimated. Raises `ModelError`.
    """
    parts = read_parts(checkpoint, source)
    notes = dict(parts.notes)
    card_domain = card.domain if card else None
    if not (domain or card_domain) and (note := domain_note(parts.options)):
        notes["domain"] = note
    domain = domain or card_domain or domain_of(parts.options)
    architecture, state = _fitted(parts, encoder_type, domain, source)
    latent_avg = _latent_avg(parts, architecture, source, estimate=estimate_latent_avg)
    weights = {re.sub(r"^decoder\.", "generator.", key): value for key, value in state.items()}
    if latent_avg is None:
        notes["latent_avg"] = ESTIMATED if estimate_latent_avg else NO_AVERAGE
    average = torch.zeros(LATENT_DIM) if latent_avg is None else latent_avg
    full_card = card or ModelCard(name=source, domain=domain, source=source)
    full_card = dataclasses.replace(full_card, notes={**full_card.notes, **notes})
    model = assemble(architecture, weights, average, full_card, source)
    if latent_avg is None and estimate_latent_avg:
        model.latent_avg.copy_(_estimated_average(model.generator, source))
    if "ignored" in notes:
        _LOG.info("%s: %s", source, notes["ignored"])
    return model


def _fitted(
    parts: Parts, encoder_type: str | None, domain: str, source: str
) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture that the weights have, and the weights that it uses."""
    state, options = parts.state, parts.options
    if parts.generator_alone:
        return _architecture(NO_ENCODER, state, options, domain, source), state
    encoder_type = _encoder_type(encoder_type or options.get("encoder_type"), state, source)
    architecture = _architecture(encoder_type, state, options, domain, source)
    architecture, state = _without_idle_heads(architecture, state)
    _agree(architecture, options, source)
    return architecture, state


def _encoder_type(given: object, state: Mapping[str, Tensor], source: str) -> str:
    """Return the given type if it is valid; without one, the only type that fits the weights."""
    if given in OFFICIAL_TYPES:
        return str(given)
    if given is not None:
        listed = ", ".join(sorted(OFFICIAL_TYPES))
        into_w = (
            "; encoders that return a single w are not supported" if "IntoW" in str(given) else ""
        )
        raise ModelError(f"{source}: opts.encoder_type is {given!r} (known: {listed}{into_w})")
    fitting = fitting_encoders({key[8:] for key in state if key.startswith("encoder.")})
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ModelError(
            f"{source}: has no encoder weights of a known type, so it is not a ReStyle, pSp or e4e "
            "checkpoint"
        )
    raise ModelError(
        f"{source}: opts name no encoder_type, and the weights fit {' or '.join(fitting)}: "
        "pass --encoder-type NAME to jobs/convert_model.py (stores it) or jobs/invert_dataset.py"
    )


def _latent_avg(
    parts: Parts, architecture: Architecture, source: str, *, estimate: bool
) -> Tensor | None:
    """Return the file's average latent, or None if the model needs none or estimates it."""
    latent_avg = parts.latent_avg
    if isinstance(latent_avg, Tensor):
        rows = architecture.encoder_arguments["n_styles"]
        # A single-pass encoder's average has one row per head, including unused heads.
        longer = latent_avg.dim() == 2 and len(latent_avg) == parts.heads > rows
        return latent_avg[:rows] if longer else latent_avg
    if latent_avg is not None:
        kind = type(latent_avg).__name__
        raise ModelError(f"{source}: 'latent_avg' is a {kind}, expected a tensor")
    if estimate or not architecture.starts_from_average:
        return None
    raise ModelError(
        f"{source}: has no 'latent_avg', the average latent that inversion starts from: pass "
        "--estimate-latent-avg to jobs/convert_model.py (stores it) or jobs/invert_dataset.py, "
        "which uses the mean of mapped z codes instead"
    )


@torch.no_grad()
def _estimated_average(generator: Generator, source: str) -> Tensor:
    """Return the mean [512] of `CODES` z codes mapped to W, float32, on the CPU.

    Codes are drawn by numpy and mapped in float64, so that every machine computes the same values:
    they are part of the model's fingerprint. Takes 20 s on one core. Raises `ModelError` for a
    generator without a mapping network; `source` names its file.
    """
    if not any(key.startswith("style.") for key in generator.state_dict()):
        raise ModelError(
            f"{source}: its generator has no mapping network to estimate the average latent with"
        )
    mapping = copy.deepcopy(generator.style).cpu().double()
    draws = np.random.Generator(np.random.PCG64(SEED))
    total = torch.zeros(LATENT_DIM, dtype=torch.float64)
    for first in range(0, CODES, _CODES_AT_ONCE):
        z = draws.standard_normal((min(_CODES_AT_ONCE, CODES - first), LATENT_DIM))
        total += mapping(torch.from_numpy(z)).sum(dim=0)
    return (total / CODES).float()


def _architecture(
    encoder_type: str,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    domain: str,
    source: str,
) -> Architecture:
    shapes = {key: list(value.shape) for key, value in state.items()}
    encoder = {key[8:]: shape for key, shape in shapes.items() if key.startswith("encoder.")}
    alone = encoder_type == NO_ENCODER
    try:
        arguments = {} if alone else official_arguments(encoder_type, encoder)
        channels = generator_channels(shapes)
    except KeyError as error:
        what = "generator" if alone else f"{encoder_type} model"
        raise ModelError(f"{source}: weight '{error.args[0]}' is missing for a {what}") from error
    except IndexError as error:
        raise ModelError(f"{source}: a weight that gives widths has too few dimensions") from error
    if alone:
        arguments = {"n_styles": 2 * len(channels), "input_channels": RESTYLE_CHANNELS}
    single_pass = arguments["input_channels"] != RESTYLE_CHANNELS
    from_average = not single_pass or bool(options.get("start_from_latent_avg", True))
    layers = sum(bool(re.fullmatch(r"decoder\.style\.\d+\.weight", key)) for key in shapes)
    input_size = preset_of(domain).input_size
    return Architecture(encoder_type, arguments, channels, layers, input_size, from_average)


def generator_channels(shapes: Mapping[str, list[int]]) -> dict[int, int]:
    """Return the width per resolution of the generator under `decoder.`.

    Raises `KeyError` if its constant input is missing.
    """
    channels = {4: shapes["decoder.input.input"][1]}
    while (up := f"decoder.convs.{2 * len(channels) - 2}.conv.weight") in shapes:
        channels[4 * 2 ** len(channels)] = shapes[up][1]
    return channels


def _without_idle_heads(
    architecture: Architecture, state: dict[str, Tensor]
) -> tuple[Architecture, dict[str, Tensor]]:
    """Drop the style heads of a single-pass encoder that exceed the generator's rows.

    pSp's and e4e's encoders have 18 heads for every generator. e4e's generator of cars, 512 px, has
    16 rows, and its scripts drop the last two codes.
    """
    rows = 2 * len(architecture.channels)
    heads = architecture.encoder_arguments["n_styles"]
    if architecture.encoder_arguments["input_channels"] == RESTYLE_CHANNELS or heads <= rows:
        return architecture, state
    idle = tuple(f"encoder.styles.{head}." for head in range(rows, heads))
    arguments = {**architecture.encoder_arguments, "n_styles": rows}
    kept = {key: value for key, value in state.items() if not key.startswith(idle)}
    return dataclasses.replace(architecture, encoder_arguments=arguments), kept


def _agree(architecture: Architecture, options: Mapping[str, Any], source: str) -> None:
    size = max(architecture.channels)
    rows = architecture.encoder_arguments["n_styles"]
    _expect("output_size", options, size, f"the decoder renders {size} px", source)
    expected = 2 * len(architecture.channels)
    if rows != expected:
        raise ModelError(
            f"{source}: the encoder has {rows} style heads, a {size} px decoder takes {expected}"
        )
    channels = architecture.encoder_arguments["input_channels"]
    _expect("input_nc", options, channels, f"the encoder takes {channels}", source)
    if channels not in {3, RESTYLE_CHANNELS}:
        raise ModelError(
            f"{source}: the encoder takes {channels} channels, expected 3 or 6: encoders of "
            "sketches and label maps cannot invert photos"
        )
    if options.get("learn_in_w"):
        raise ModelError(
            f"{source}: opts.learn_in_w is set; encoders that return a single w are not supported"
        )


def _expect(name: str, options: Mapping[str, Any], actual: int, evidence: str, source: str) -> None:
    """Raise `ModelError` unless the option is absent or equals the value from the weights."""
    given = options.get(name)
    if given is not None and str(given) != str(actual):
        raise ModelError(f"{source}: opts.{name} is {given}, but {evidence}")
