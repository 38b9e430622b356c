"""Load a state dict into a model strictly, and report in one line what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.model import Architecture, ModelCard, RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM, blur_kernel, n_styles_of

GIVEN_BY_CODE = ".kernel"
_MOST_LEVELS = 11  # 4096 px
_MOST_LAYERS = 64  # official mapping networks have 8
_INPUT_SIDES = range(16, 2049)  # pixels; the published encoders see 192 and 256
_INPUT_CHANNELS = (3, 6)
# Bound on bytes by shape over bytes stored: a network may share one weight, not a thousand.
_MOST_SHARED, _FREE_BYTES = 2, 64 << 20


def assemble(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    latent_avg: Tensor,
    card: ModelCard,
    source: str,
) -> RestyleModel:
    """Return a model with `weights` (`encoder.*`, `generator.*`), float32, sharing their memory.

    `latent_avg` is [512], [1, 512] or [n_styles, 512]. `source` names the file in errors. Raises
    `ModelError` for a missing or unexpected key, a wrong shape or a wrong type.
    """
    check_held((*weights.values(), latent_avg), source)
    model = _untrained(architecture, card, source)
    expected = model.state_dict()
    del expected["latent_avg"]
    _check(expected, weights, source)
    state = {key: _as_float32(key, tensor) for key, tensor in weights.items()}
    average = per_row(latent_avg, model.n_styles, source)
    state["latent_avg"] = average.to(torch.float32)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _untrained(architecture: Architecture, card: ModelCard, source: str) -> RestyleModel:
    """Return the model without weights.

    Sizes are checked first: those of a forged record could make construction run without end.
    """
    sizes = sorted(architecture.channels)
    rows = architecture.encoder_arguments.get("n_styles")
    if sizes != [4 << level for level in range(len(sizes))] or not 1 <= len(sizes) <= _MOST_LEVELS:
        raise ModelError(f"{source}: a generator cannot have the resolutions {sizes[:12]}")
    if rows != n_styles_of(sizes[-1]):
        raise ModelError(f"{source}: an encoder of {rows!r} rows does not fit {sizes[-1]} px")
    if not 0 <= architecture.mapping_layers <= _MOST_LAYERS:
        raise ModelError(
            f"{source}: {architecture.mapping_layers} mapping layers, expected at most "
            f"{_MOST_LAYERS}"
        )
    _check_input(architecture, source)
    try:
        with torch.device("meta"):
            return RestyleModel(architecture, card)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{source}: its architecture cannot be built: {why}") from error


def _check_input(architecture: Architecture, source: str) -> None:
    sides, arguments = architecture.input_size, architecture.encoder_arguments
    if not all(side in _INPUT_SIDES for side in sides):
        raise ModelError(
            f"{source}: the encoder's input is {sides[0]}x{sides[1]} px; each side must be "
            f"{_INPUT_SIDES[0]} to {_INPUT_SIDES[-1]}"
        )
    square = arguments.get("input_size", sides[0])
    if "input_size" in arguments and (square, square) != sides:
        raise ModelError(f"{source}: an encoder of {square} px does not fit an input of {sides}")
    if arguments.get("input_channels") not in _INPUT_CHANNELS:
        raise ModelError(
            f"{source}: an encoder of {arguments.get('input_channels')} channels, expected 3 or 6"
        )


def check_held(tensors: Iterable[Tensor], source: str) -> None:
    """Raise `ModelError` if tensors have more elements than the memory behind them holds.

    An expanded tensor of one element can have any shape, and a copy would allocate the whole shape.
    Tensors that are not plain are skipped; `is_plain` refuses them.
    """
    plain = [tensor for tensor in tensors if is_plain(tensor)]
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in plain)
    storages = {(store := tensor.untyped_storage()).data_ptr(): store.nbytes() for tensor in plain}
    if claimed > _MOST_SHARED * sum(storages.values()) + _FREE_BYTES:
        raise ModelError(
            f"{source}: its tensors have {claimed} bytes by their shapes, but the file holds "
            f"{sum(storages.values())}: they are expanded or shared, so this is not a model"
        )


def per_row(latent_avg: Tensor, n_styles: int, source: str) -> Tensor:
    """Return `latent_avg` of any published shape as [n_styles, 512]."""
    if not is_plain(latent_avg):
        raise ModelError(f"{source}: latent_avg is not a plain tensor of real numbers")
    shape = tuple(latent_avg.shape)
    if shape not in {(LATENT_DIM,), (1, LATENT_DIM), (n_styles, LATENT_DIM)}:
        raise ModelError(
            f"{source}: latent_avg has shape {list(shape)}, "
            f"expected [512], [1, 512] or [{n_styles}, 512]"
        )
    return latent_avg.detach().expand(n_styles, LATENT_DIM).contiguous()


def _check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    if missing:
        raise ModelError(f"{source}: weight '{missing[0]}' is missing{_more(missing)}")
    if unexpected:
        raise ModelError(
            f"{source}: weight '{unexpected[0]}' does not belong to this model{_more(unexpected)}"
        )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise ModelError(
                f"{source}: weight '{key}' has shape {list(tensor.shape)}, "
                f"expected {list(expected[key].shape)}"
            )
        if not is_plain(tensor):
            raise ModelError(f"{source}: weight '{key}' is not a plain tensor of real numbers")
        if key.endswith(GIVEN_BY_CODE) and not torch.allclose(tensor.float().cpu(), blur_kernel()):
            raise ModelError(f"{source}: '{key}' is not the binomial blur [1, 3, 3, 1]")


def is_plain(tensor: Tensor) -> bool:
    """Return whether the tensor is dense and real: not sparse, quantised, complex or meta."""
    odd = tensor.is_quantized or tensor.is_complex() or tensor.is_meta
    return tensor.layout == torch.strided and not odd


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _as_float32(key: str, tensor: Tensor) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return tensor.detach()
    return tensor.detach().to(torch.float32).contiguous()
