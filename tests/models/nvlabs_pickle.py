"""Write pickles with the layout of NVIDIA's StyleGAN2 networks, and compute their images.

Classes with the names in such files exist only while a pickle is written; at any other time no
module of these names can be imported.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.tiny import filled

CHANNELS = {4: 12, 8: 10, 16: 8}
# Executing this source creates a file, which tests look for.
SOURCE = "import pathlib; pathlib.Path('executed').touch(); raise SystemExit('executed')"


class Layer:
    """A module that is pickled as a class with its source and its state."""

    def __init__(self, class_name: str, **attributes: Any) -> None:
        self.class_name, self.source = class_name, SOURCE
        self.state: dict[str, Any] = {
            "training": False,
            "_parameters": OrderedDict(),
            "_buffers": OrderedDict(),
            "_non_persistent_buffers_set": {"unused"},
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict(),
            "_init_args": (),
            **attributes,
        }

    def parameter(self, name: str, value: Tensor) -> None:
        """Add a parameter."""
        self.state["_parameters"][name] = torch.nn.Parameter(value)

    def buffer(self, name: str, value: Tensor) -> None:
        """Add a buffer."""
        self.state["_buffers"][name] = value

    def child(self, name: str, layer: Layer) -> Layer:
        """Add a submodule."""
        self.state["_modules"][name] = layer
        return layer

    def __getitem__(self, name: str) -> Any:
        for kind in ("_modules", "_parameters", "_buffers"):
            if name in self.state[kind]:
                return self.state[kind][name]
        return self.state[name]

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source}
        meta |= {"class_name": self.class_name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextmanager
def nvidias_names() -> Iterator[None]:
    """Provide modules with NVIDIA's names while a pickle is written."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError(f"a pickle was run: {meta}")

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = type("EasyDict", (dict,), {"__module__": util.__name__})  # type: ignore[attr-defined]
    modules = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    modules |= {module.__name__: module for module in (persistence, util)}
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def linear(name: str, inputs: int, outputs: int, rate: float, activation: str) -> Layer:
    """Return a fully connected layer."""
    layer = Layer("FullyConnectedLayer", activation=activation)
    layer.parameter("weight", filled(f"{name}.weight", (outputs, inputs)) / rate)
    bias = filled(f"{name}.bias", (outputs,)) / rate
    layer.parameter("bias", bias + (activation == "linear"))
    layer.state |= {"weight_gain": rate / np.sqrt(inputs), "bias_gain": rate}
    return layer


def style_layer(name: str, inputs: int, outputs: int, size: int, up: int) -> Layer:
    """Return a modulated convolution with noise."""
    layer = Layer("SynthesisLayer", resolution=size, up=up, use_noise=True, activation="lrelu")
    layer.child("affine", linear(f"{name}.affine", 512, inputs, 1, "linear"))
    weight = filled(f"decoder.{name}.weight", (outputs, inputs, 3, 3))
    layer.parameter("weight", weight.contiguous(memory_format=torch.channels_last))
    layer.parameter("bias", filled(f"{name}.bias", (outputs,)))
    layer.parameter("noise_strength", torch.tensor(0.3))
    layer.buffer("noise_const", filled(f"decoder.{name}.noise_const", (size, size)))
    layer.buffer("resample_filter", blur())
    return layer


def blur() -> Tensor:
    """Return the two-dimensional filter [1, 3, 3, 1], with sum 1."""
    taps = torch.tensor([1.0, 3, 3, 1])
    return torch.outer(taps, taps) / 64


def network(
    mapping_layers: int = 2, rate: float = 0.01, channels: dict[int, int] = CHANNELS
) -> Layer:
    """Return a generator whose weights are functions of their names."""
    size = max(channels)
    generator = Layer("Generator", z_dim=512, c_dim=0, w_dim=512, img_resolution=size)
    generator.state |= {"img_channels": 3, "num_ws": 2 * len(channels)}
    mapping = generator.child("mapping", Layer("MappingNetwork", z_dim=512, c_dim=0, w_dim=512))
    mapping.state |= {"num_layers": mapping_layers, "w_avg_beta": 0.995}
    for index in range(mapping_layers):
        mapping.child(f"fc{index}", linear(f"fc{index}", 512, 512, rate, "lrelu"))
    mapping.buffer("w_avg", filled("decoder.w_avg", (512,)) * 0.3)
    synthesis = generator.child("synthesis", Layer("SynthesisNetwork", img_resolution=size))
    synthesis.state |= {"img_channels": 3, "w_dim": 512, "num_fp16_res": 0}
    below = 0
    for size, width in channels.items():
        block = synthesis.child(f"b{size}", Layer("SynthesisBlock", architecture="skip"))
        block.buffer("resample_filter", blur())
        if size == 4:
            block.parameter("const", filled("decoder.const", (width, 4, 4)))
        else:
            block.child("conv0", style_layer(f"{size}.conv0", below, width, size, 2))
        block.child("conv1", style_layer(f"{size}.conv1", width, width, size, 1))
        rgb = block.child("torgb", Layer("ToRGBLayer", conv_clamp=256))
        rgb.child("affine", linear(f"{size}.rgb.affine", 512, width, 1, "linear"))
        rgb.parameter("weight", filled(f"decoder.{size}.rgb", (3, width, 1, 1)))
        rgb.parameter("bias", filled(f"{size}.rgb.bias", (3,)))
        rgb.state["weight_gain"] = 1 / np.sqrt(width)
        below = width
    return generator


def pickled(generator: Layer, protocol: int = 4, **more: Any) -> bytes:
    """Return a snapshot's file as NVIDIA's training writes it."""
    with nvidias_names():
        easy = sys.modules["dnnlib.util"].EasyDict
        options = easy(class_name="training.dataset.ImageFolderDataset", use_labels=False)
        content = {"training_set_kwargs": options, "D": None, "G_ema": generator, **more}
        return pickle.dumps(content, protocol=protocol)


def saved_by_torch(generator: Layer, *, zipped: bool) -> bytes:
    """Return a snapshot's file as `torch.save` writes it."""
    sink = io.BytesIO()
    with nvidias_names():
        torch.save({"G_ema": generator}, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


# --- the arithmetic of the published networks (noise_mode='const'), with weights that are
# modulated themselves, in float64


def _linear(layer: Layer, x: Tensor) -> Tensor:
    gain = float(layer["weight_gain"])
    x = x @ (layer["weight"].double() * gain).T + layer["bias"].double() * layer["bias_gain"]
    return F.leaky_relu(x, 0.2) * 2**0.5 if layer["activation"] == "lrelu" else x


def map_z(generator: Layer, z: Tensor) -> Tensor:
    """Map Z codes [n, 512] to W codes [n, 512]."""
    x = z.double() / (z.double().square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    mapping = generator["mapping"]
    for index in range(mapping["num_layers"]):
        x = _linear(mapping[f"fc{index}"], x)
    return x


def _resampled(x: Tensor) -> Tensor:
    kernel = (blur().double() * 4)[None, None].expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, groups=x.shape[1])


def _styled(layer: Layer, x: Tensor, w: Tensor) -> Tensor:
    style = _linear(layer["affine"], w[None])[0]
    weight = layer["weight"].double() * style[None, :, None, None]
    weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if layer["up"] == 2:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        x = _resampled(F.pad(x, (1, 1, 1, 1)))
    else:
        x = F.conv2d(x, weight, padding=1)
    x = x + layer["noise_const"].double() * layer["noise_strength"].double()
    return F.leaky_relu(x + layer["bias"].double()[:, None, None], 0.2) * 2**0.5


def _doubled(image: Tensor) -> Tensor:
    spread = torch.zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3]).double()
    spread[:, :, ::2, ::2] = image
    return _resampled(F.pad(spread, (2, 1, 2, 1)))


@torch.no_grad()
def render(generator: Layer, w_plus: Tensor) -> Tensor:
    """Render one code [n_styles, 512] as an image [1, 3, size, size]."""
    rows, image, row = w_plus.double(), None, 0
    x = generator["synthesis"]["b4"]["const"].double()[None]
    for size in CHANNELS:
        block = generator["synthesis"][f"b{size}"]
        if size > 4:
            x = _styled(block["conv0"], x, rows[row])
            row += 1
        x = _styled(block["conv1"], x, rows[row])
        row += 1
        style = _linear(block["torgb"]["affine"], rows[row][None])[0]
        weight = block["torgb"]["weight"].double() * float(block["torgb"]["weight_gain"])
        rgb = F.conv2d(x, weight * style[None, :, None, None])
        rgb = rgb + block["torgb"]["bias"].double()[:, None, None]
        image = rgb if image is None else _doubled(image) + rgb
    assert image is not None
    return image
