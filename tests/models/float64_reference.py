"""Float64 reference of ReStyle that works on an official state dict.

Written from the papers and independent of the library: weights are modulated for every sample,
every convolution of the generator runs per sample, resampling is zero insertion and one 4x4 filter,
and nothing is fused. Slow; only for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def synthesise(state: Weights, w_plus: Tensor) -> Tensor:
    """Render [n, rows, 512] as [n, 3, size, size]."""
    return torch.stack([_one_image(state, code) for code in w_plus])


def _one_image(state: Weights, code: Tensor) -> Tensor:
    x = state["decoder.input.input"][0]
    x = _style_layer(state, "decoder.conv1", x, code[0], state["decoder.noises.noise_0"], up=False)
    image = _to_rgb(state, "decoder.to_rgb1", x, code[1])
    row, level = 1, 0
    while f"decoder.to_rgbs.{level}.bias" in state:
        for half in range(2):
            index = 2 * level + half
            noise = state[f"decoder.noises.noise_{index + 1}"]
            x = _style_layer(state, f"decoder.convs.{index}", x, code[row], noise, up=half == 0)
            row += 1
        kernel = state[f"decoder.to_rgbs.{level}.upsample.kernel"]
        image = _filtered(_zeros_between(image), kernel, before=2, after=1)
        image = image + _to_rgb(state, f"decoder.to_rgbs.{level}", x, code[row])
        level += 1
    return image


def _modulated(state: Weights, name: str, row: Tensor, demodulate: bool) -> Tensor:
    weight = state[f"{name}.conv.weight"][0]
    outputs, inputs, height, width = weight.shape
    affine = state[f"{name}.conv.modulation.weight"] / 512**0.5
    style = affine @ row + state[f"{name}.conv.modulation.bias"]
    weight = weight / (inputs * height * width) ** 0.5 * style.reshape(1, inputs, 1, 1)
    if demodulate:
        norm = weight.reshape(outputs, -1).square().sum(1) + 1e-8
        weight = weight / norm.sqrt().reshape(outputs, 1, 1, 1)
    return weight


def _style_layer(
    state: Weights, name: str, x: Tensor, row: Tensor, noise: Tensor, *, up: bool
) -> Tensor:
    weight = _modulated(state, name, row, demodulate=True)
    if up:
        # A transposed convolution: zeros between the pixels, then a full correlation with the
        # flipped kernel.
        spread = F.pad(_zeros_between(x)[:, :-1, :-1], (2, 2, 2, 2))
        y = F.conv2d(spread[None], weight.flip(2, 3))[0]
        y = _filtered(y, state[f"{name}.conv.blur.kernel"], before=1, after=1)
    else:
        y = F.conv2d(F.pad(x, (1, 1, 1, 1))[None], weight)[0]
    y = y + state[f"{name}.noise.weight"] * noise[0]
    y = y + state[f"{name}.activate.bias"].reshape(-1, 1, 1)
    return torch.where(y >= 0, y, 0.2 * y) * 2**0.5


def _to_rgb(state: Weights, name: str, x: Tensor, row: Tensor) -> Tensor:
    weight = _modulated(state, name, row, demodulate=False)[:, :, 0, 0]
    return torch.einsum("oi,ihw->ohw", weight, x) + state[f"{name}.bias"][0]


def _zeros_between(x: Tensor) -> Tensor:
    channels, height, width = x.shape
    spread = x.new_zeros(channels, 2 * height, 2 * width)
    spread[:, ::2, ::2] = x
    return spread


def _filtered(x: Tensor, kernel: Tensor, *, before: int, after: int) -> Tensor:
    padded = F.pad(x, (before, after, before, after))
    return F.conv2d(padded[:, None], kernel.flip(0, 1)[None, None])[:, 0]


def encode(state: Weights, encoder_type: str, x: Tensor) -> Tensor:
    """Encode [n, c, h, w] as [n, rows, 512]."""
    stages = _resnet(state, x) if encoder_type.startswith("ResNet") else _ir_se(state, x)
    if "encoder.latlayer1.weight" in state:
        middle = _merged(state, "encoder.latlayer1", stages[3], stages[2])
        fine = _merged(state, "encoder.latlayer2", middle, stages[1])
        sources = [stages[3]] * 3 + [middle] * 4 + [fine] * 99
    else:
        sources = [stages[3]] * 99
    rows = []
    while f"encoder.styles.{len(rows)}.linear.bias" in state:
        rows.append(_head(state, f"encoder.styles.{len(rows)}", sources[len(rows)]))
    if "Progressive" in encoder_type or encoder_type == "Encoder4Editing":
        rows = [rows[0]] + [rows[0] + delta for delta in rows[1:]]
    return torch.stack(rows, dim=1)


def _head(state: Weights, name: str, x: Tensor) -> Tensor:
    index = 0
    while f"{name}.convs.{index}.weight" in state:
        weight, bias = state[f"{name}.convs.{index}.weight"], state[f"{name}.convs.{index}.bias"]
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, bias, stride=2)
        x = torch.where(x >= 0, x, 0.01 * x)
        index += 2
    weight = state[f"{name}.linear.weight"] / 512**0.5
    return x[:, :, 0, 0] @ weight.t() + state[f"{name}.linear.bias"]


def _merged(state: Weights, name: str, coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the coarser map, enlarged corner to corner, plus a 1x1 convolution of the finer."""
    height, width = fine.shape[2:]
    columns, rows = (
        _corner_to_corner(coarse.shape[3], width),
        _corner_to_corner(coarse.shape[2], height),
    )
    enlarged = torch.einsum("yh,nchw,xw->ncyx", rows, coarse, columns)
    return enlarged + F.conv2d(fine, state[f"{name}.weight"], state[f"{name}.bias"])


def _corner_to_corner(source: int, target: int) -> Tensor:
    """Return linear interpolation as a matrix [target, source]."""
    position = torch.arange(target, dtype=torch.float64) * (source - 1) / (target - 1)
    return (1 - (position[:, None] - torch.arange(source)).abs()).clamp(min=0)


def _norm(state: Weights, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    factor = state[f"{name}.weight"] / (var + 1e-5).sqrt()
    return (x - mean.reshape(-1, 1, 1)) * factor.reshape(-1, 1, 1) + state[f"{name}.bias"].reshape(
        -1, 1, 1
    )


def _prelu(state: Weights, name: str, x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, state[f"{name}.weight"].reshape(-1, 1, 1) * x)


def _ir_se(state: Weights, x: Tensor) -> list[Tensor]:
    x = F.conv2d(x, state["encoder.input_layer.0.weight"], padding=1)
    x = _prelu(state, "encoder.input_layer.2", _norm(state, "encoder.input_layer.1", x))
    stages = []
    for block in range(24):
        name = f"encoder.body.{block}"
        stride = 2 if block in {0, 3, 7, 21} else 1
        y = _norm(state, f"{name}.res_layer.0", x)
        y = F.conv2d(y, state[f"{name}.res_layer.1.weight"], padding=1)
        y = _prelu(state, f"{name}.res_layer.2", y)
        y = F.conv2d(y, state[f"{name}.res_layer.3.weight"], padding=1, stride=stride)
        y = _norm(state, f"{name}.res_layer.4", y)
        x = _gated(state, f"{name}.res_layer.5", y) + _shortcut(state, name, x, stride)
        if block in {2, 6, 20, 23}:
            stages.append(x)
    return stages


def _gated(state: Weights, name: str, x: Tensor) -> Tensor:
    squeezed = x.mean(dim=(2, 3)) @ state[f"{name}.fc1.weight"][:, :, 0, 0].t()
    gate = squeezed.clamp(min=0) @ state[f"{name}.fc2.weight"][:, :, 0, 0].t()
    return x / (1 + torch.exp(-gate))[:, :, None, None]


def _shortcut(state: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    if f"{name}.shortcut_layer.0.weight" not in state:
        return x[:, :, ::stride, ::stride]
    x = F.conv2d(x, state[f"{name}.shortcut_layer.0.weight"], stride=stride)
    return _norm(state, f"{name}.shortcut_layer.1", x)


def _resnet(state: Weights, x: Tensor) -> list[Tensor]:
    x = F.conv2d(x, state["encoder.conv1.weight"], padding=3, stride=2)
    x = _prelu(state, "encoder.relu", _norm(state, "encoder.bn1", x))
    stages = []
    for block in range(16):
        name = f"encoder.body.{block}"
        stride = 2 if block in {3, 7, 13} else 1
        y = F.conv2d(x, state[f"{name}.conv1.weight"], padding=1, stride=stride)
        y = _norm(state, f"{name}.bn1", y).clamp(min=0)
        y = _norm(state, f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2)
            x = _norm(state, f"{name}.downsample.1", x)
        x = (x + y).clamp(min=0)
        if block in {2, 6, 12, 15}:
            stages.append(x)
    return stages


def restyle(
    checkpoint: Mapping[str, object], encoder_type: str, images: Tensor, steps: int
) -> tuple[np.ndarray, Tensor]:
    """Return codes [n, steps, rows, 512] and last images [n, 3, size, size] of the ReStyle loop."""
    given = checkpoint["state_dict"]
    assert isinstance(given, dict)
    state = {key: value.double() for key, value in given.items()}
    average = checkpoint["latent_avg"]
    assert isinstance(average, Tensor)
    images, height = images.double(), images.shape[2]
    codes = average.double().expand(len(images), 2 * len(_levels(state)), 512)
    sixth = 6 in {state[key].shape[1] for key in _first_layers(state)}
    rendered = synthesise(state, codes)
    steps_codes = []
    for _ in range(steps):
        inputs = torch.cat([images, _resized(rendered, height)], dim=1) if sixth else images
        codes = codes + encode(state, encoder_type, inputs)
        rendered = synthesise(state, codes)
        steps_codes.append(codes)
    return torch.stack(steps_codes, dim=1).numpy(), rendered


def _levels(state: Weights) -> list[str]:
    return [
        "4",
        *(
            key
            for key in state
            if key.startswith("decoder.to_rgbs.") and "bias" in key and "modulation" not in key
        ),
    ]


def _first_layers(state: Weights) -> list[str]:
    names = ["encoder.input_layer.0.weight", "encoder.conv1.weight"]
    return [name for name in names if name in state]


def _resized(images: Tensor, size: int) -> Tensor:
    """Enlarge images to the encoder's input size by repeating pixels."""
    times = size // images.shape[2]
    return images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
