"""Reads official ReStyle, pSp and e4e checkpoints: `{"state_dict", "latent_avg", "opts"}`.

The weights decide: channel widths, output size, input channels and number of rows come from their
shapes. `opts` must agree, and tells what shapes cannot: the encoder's type and the domain.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.encoders import OFFICIAL_TYPES, fitting_encoders, official_arguments
from pipeline.models.presets import domain_of, preset_of
from pipeline.models.restyle import Architecture, ModelCard, RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM
from pipeline.models.weights import assemble

ADVICE = "fetch it again, or name another"
RESTYLE_CHANNELS = 6  # target and reconstruction; one-pass encoders see 3
# A file of weights hardly packs at all, and torch stores its parts unpacked.
_MOST_UNPACKED, _FREE_BYTES = 4, 64 << 20
NO_AVERAGE = "absent from the checkpoint, which does not start from it: zeros stand in its place"


def read_checkpoint(file: IO[bytes], source: str) -> dict[str, Any]:
    """The dictionary in an open official `.pt` file; runs no code from it.

    Raises `ModelError` if it is damaged, is no checkpoint, or holds other classes than tensors,
    plain containers and `argparse.Namespace`, or if its parts unpack to many times its size. What
    `file` itself raises is passed on.
    """
    refuse_bomb(file, source)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a protocol that it then refuses
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds the class {refused[1]}" if refused else "it is no file of tensors"
        raise ModelError(f"{source}: refused, {what}; {ADVICE}") from error
    except Exception as error:  # of a damaged file torch's own unpickler raises whatever comes
        if failed := _failed_read(error):
            raise failed from None
        raise ModelError(f"{source}: damaged, or not a PyTorch checkpoint; {ADVICE}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{source}: holds a {type(content).__name__}, expected a checkpoint dict")
    return content


def refuse_bomb(file: IO[bytes], source: str) -> None:
    """Raise `ModelError` if the parts of a zip file, packed or shared, are many times the file."""
    try:
        with zipfile.ZipFile(file) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, EOFError):
        return  # torch's older layout, or damaged: torch says so
    except OSError as error:
        if failed := _failed_read(error):
            raise failed from None
        return
    finally:
        size = file.seek(0, 2)
        file.seek(0)
    if unpacked > _MOST_UNPACKED * size + _FREE_BYTES:
        raise ModelError(
            f"{source}: refused, its {size} bytes unpack to {unpacked}, more than any weights do; "
            f"{ADVICE}"
        )


def _failed_read(error: BaseException | None) -> OSError | None:
    """The storage's error behind `error`, which torch's zip reader wraps into others."""
    while error is not None:
        # EINVAL: the file's own tables point to before its beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            return error
        error = error.__cause__ or error.__context__
    return None


def load_checkpoint(
    checkpoint: Mapping[str, Any],
    *,
    encoder_type: str | None = None,
    domain: str | None = None,
    card: ModelCard | None = None,
    source: str = "checkpoint",
) -> RestyleModel:
    """A model from an official dictionary; it shares the memory of the dictionary's tensors.

    `encoder_type` and `domain` are for checkpoints whose `opts` do not name them; the domain
    decides the shape of the encoder's input, which is wide for cars. Raises `ModelError`.
    """
    state, options = _parts(checkpoint, source)
    domain = domain or (card.domain if card else domain_of(options))
    encoder_type = _encoder_type(encoder_type or options.get("encoder_type"), state, source)
    architecture = _architecture(encoder_type, state, options, domain, source)
    latent_avg = _latent_avg(checkpoint, architecture, source)
    n_heads = architecture.encoder_arguments["n_styles"]
    architecture, state = _without_idle_heads(architecture, state)
    _agree(architecture, options, source)
    if latent_avg is not None and latent_avg.shape == (n_heads, LATENT_DIM):
        latent_avg = latent_avg[: architecture.encoder_arguments["n_styles"]]
    weights = {re.sub(r"^decoder\.", "generator.", key): value for key, value in state.items()}
    notes = {} if latent_avg is not None else {"latent_avg": NO_AVERAGE}
    average = torch.zeros(LATENT_DIM) if latent_avg is None else latent_avg
    made = card or ModelCard(name=source, domain=domain, source=source, notes=notes)
    return assemble(architecture, weights, average, made, source)


def _parts(checkpoint: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise ModelError(f"{source}: is a {kind}, expected the official dictionary")
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping) or not state:
        have = ", ".join(map(repr, list(checkpoint)[:4])) or "nothing"
        raise ModelError(f"{source}: no 'state_dict', so not a ReStyle checkpoint (found {have})")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{source}: weight '{key}' is a {type(value).__name__}, not a tensor")
    options = checkpoint.get("opts")
    options = {} if options is None else options
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, Mapping):
        raise ModelError(f"{source}: 'opts' is a {type(options).__name__}, not a dict")
    for name, value in options.items():
        if isinstance(value, Tensor):
            raise ModelError(f"{source}: option '{name}' is a tensor, expected text or a number")
    return dict(state), dict(options)


def _encoder_type(told: object, state: Mapping[str, Tensor], source: str) -> str:
    """The type that the options name, or the only one that has weights of these names."""
    if told in OFFICIAL_TYPES:
        return str(told)
    if told is not None:
        listed = ", ".join(sorted(OFFICIAL_TYPES))
        into_w = "; encoders of a single w are not" if "IntoW" in str(told) else ""
        raise ModelError(f"{source}: opts.encoder_type is {told!r} (known: {listed}{into_w})")
    fitting = fitting_encoders({key[8:] for key in state if key.startswith("encoder.")})
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ModelError(
            f"{source}: holds no encoder weights that are known, so it is no ReStyle, pSp or e4e "
            "checkpoint"
        )
    raise ModelError(
        f"{source}: opts name no encoder_type, and the weights fit {' or '.join(fitting)}; convert "
        "it once with jobs/convert_model.py --encoder-type NAME"
    )


def _latent_avg(
    checkpoint: Mapping[str, Any], architecture: Architecture, source: str
) -> Tensor | None:
    """The average latent as it stands; None only where the model does without it."""
    latent_avg = checkpoint.get("latent_avg")
    if isinstance(latent_avg, Tensor):
        return latent_avg
    if latent_avg is None and not architecture.starts_from_average:
        return None
    raise ModelError(
        f"{source}: no 'latent_avg', and without the average latent ReStyle has no start; "
        "add it to the dictionary, for example the mean of mapped z codes"
    )


def _architecture(
    encoder_type: str,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    domain: str,
    source: str,
) -> Architecture:
    shapes = {key: list(value.shape) for key, value in state.items()}
    encoder = {key[8:]: shape for key, shape in shapes.items() if key.startswith("encoder.")}
    try:
        arguments = official_arguments(encoder_type, encoder)
        channels = generator_channels(shapes)
    except KeyError as error:
        raise ModelError(
            f"{source}: weight '{error.args[0]}' is missing for a {encoder_type} model"
        ) from error
    except IndexError as error:
        raise ModelError(f"{source}: a weight that gives widths has too few dimensions") from error
    mapping = [key for key in shapes if re.match(r"decoder\.style\.\d+\.weight", key)]
    one_pass = arguments["input_channels"] != RESTYLE_CHANNELS
    starts = not one_pass or bool(options.get("start_from_latent_avg", True))
    return Architecture(
        encoder_type, arguments, channels, len(mapping), preset_of(domain).input_size, starts
    )


def generator_channels(shapes: Mapping[str, list[int]]) -> dict[int, int]:
    """Width per resolution of the generator under `decoder.`; `KeyError` without its input."""
    channels = {4: shapes["decoder.input.input"][1]}
    while (up := f"decoder.convs.{2 * len(channels) - 2}.conv.weight") in shapes:
        channels[4 * 2 ** len(channels)] = shapes[up][1]
    return channels


def _without_idle_heads(
    architecture: Architecture, state: dict[str, Tensor]
) -> tuple[Architecture, dict[str, Tensor]]:
    """The one-pass encoders of pSp and e4e have 18 heads for every generator; e4e's cars, of 512
    px, have 16 rows, and its scripts drop the last two codes."""
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
            "sketches and label maps do not invert photos"
        )
    if options.get("learn_in_w"):
        raise ModelError(f"{source}: opts.learn_in_w is set; encoders of a single w are not known")


def _expect(name: str, options: Mapping[str, Any], found: int, otherwise: str, source: str) -> None:
    """Raise `ModelError` unless the option is absent or is what the weights say."""
    told = options.get(name)
    if told is not None and str(told) != str(found):
        raise ModelError(f"{source}: opts.{name} is {told}, but {otherwise}")
