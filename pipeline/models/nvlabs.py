"""Read NVIDIA's StyleGAN2 pickles (stylegan2-ada-pytorch, stylegan3) without executing them.

Such a file is a pickle of modules, and each module carries Python source to be executed on load.
Here the source is ignored: a module becomes a record of its class name and its state, a tensor a
record of its bytes, and every other name is refused. The tensors of `G_ema` are then renamed to
those of this package's generator, whose arithmetic is the same.

Derived from the format itself: Karras et al., "Training Generative Adversarial Networks with
Limited Data" (NeurIPS 2020), and the opcodes of published files.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

from pipeline.errors import InputError, ModelError
from pipeline.inert_numpy import NUMPY_NAMES, InertArray, InertType, bytes_of
from pipeline.inert_pickle import read_pickle
from pipeline.models.checkpoint import read_checkpoint, refuse_bomb
from pipeline.models.safe_globals import plain
from pipeline.models.stylegan2 import LATENT_DIM, blur_kernel
from pipeline.models.weights import is_plain

EXPORT = "export it with `python export_weights.py IN.pkl OUT.pt` of stylegan2-ada-pytorch"
CONVERT = "convert it first with `python legacy.py --source=IN.pkl --dest=OUT.pkl` of stylegan3"
_TORCH_ZIP, _TORCH_LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CLASSES = {
    *("Generator", "MappingNetwork", "SynthesisNetwork", "SynthesisBlock", "SynthesisLayer"),
    *("ToRGBLayer", "FullyConnectedLayer"),
}
_MAPPING_RATE = 0.01  # learning rate multiplier of this package's mapping layers


class Module:
    """Record of a network or layer: the name of its class, and its attributes."""

    def __init__(self, meta: object) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise TypeError("a module without a state")
        self.class_name, self.state = str(meta.get("class_name")), meta["state"]

    def child(self, name: str) -> Module | None:
        """Return the submodule called `name`, or None."""
        modules = self.state.get("_modules")
        child = modules.get(name) if isinstance(modules, dict) else None
        return child if isinstance(child, Module) else None

    def tensor(self, name: str) -> Tensor | None:
        """Return the parameter or buffer called `name`, or None.

        Raises `ValueError` for one that is larger than its memory.
        """
        for kind in ("_parameters", "_buffers"):
            held = self.state.get(kind)
            value = held.get(name) if isinstance(held, dict) else None
            tensor = value.tensor() if isinstance(value, InertTensor) else value
            if isinstance(tensor, Tensor):
                if not is_plain(tensor):
                    raise ValueError(f"'{name}' is not a plain tensor")
                if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                    raise ValueError(f"'{name}' has more elements than its storage")
                return tensor.detach()
        return None

    def number(self, name: str, otherwise: float) -> float:
        """Return the numeric attribute called `name`, or `otherwise` if it is absent."""
        value = plain(self.state.get(name, otherwise))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"'{name}' is a {type(value).__name__}")
        return value


class InertStorage:
    """Memory of a tensor, stored as the bytes of a small torch file."""

    def __init__(self, raw: object) -> None:
        self._content = bytes_of(raw)
        self._loaded: torch.storage.TypedStorage | None = None

    def load(self) -> torch.storage.TypedStorage:
        """Return the storage, read by torch's restricted unpickler."""
        if self._loaded is None:
            file = io.BytesIO(self._content)
            refuse_bomb(file, "a tensor")
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(loaded, torch.storage.TypedStorage):
                raise TypeError("data that is not a storage")
            self._loaded = loaded
        return self._loaded


class InertTensor:
    """Record of a tensor: a view of a storage."""

    def __init__(
        self, storage: InertStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        self._storage, self._offset, self._size, self._stride = storage, offset, size, stride

    def tensor(self) -> Tensor:
        """Return the tensor, sharing its storage's memory; raise if it exceeds the storage."""
        storage = self._storage.load()
        whole = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        return whole.as_strided(self._size, self._stride, self._offset)


def _rebuilt(storage: object, offset: int, size: Any, stride: Any, *_: object) -> InertTensor:
    if not isinstance(storage, InertStorage):
        raise TypeError("a tensor without a storage")
    return InertTensor(storage, offset, size, stride)


def _first(value: object, *_: object) -> object:
    return value


def _dictionary(items: object = ()) -> dict[Any, Any]:
    if items:
        raise TypeError("a dictionary of a list of pairs")
    return {}


def _names(items: object = ()) -> set[str]:
    if not isinstance(items, list | tuple) or not all(type(item) is str for item in items):
        raise TypeError("a set of something else than names")
    return set(items)


def _tensorflow(*_: object) -> object:
    raise ModelError(f"a TensorFlow network: {CONVERT}")


NAMES: dict[str, Callable[..., Any]] = {
    **NUMPY_NAMES,
    "torch_utils.persistence._reconstruct_persistent_obj": Module,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.storage._load_from_bytes": InertStorage,
    "dnnlib.util.EasyDict": _dictionary,
    "dnnlib.EasyDict": _dictionary,
    "collections.OrderedDict": _dictionary,
    "builtins.set": _names,
    "__builtin__.set": _names,
    "dnnlib.tflib.network.Network": _tensorflow,
}


def read_network(file: IO[bytes], source: str) -> dict[str, Any]:
    """Return NVIDIA's generator as `{"g_ema", "latent_avg"}`, with this package's weight names.

    `file` is a pickle, or was written by `torch.save`. No code of it is executed. Raises
    `ModelError` in one line, naming `source`, for a pickle that holds anything but tensors, plain
    values and modules, and for a generator that is not a square, unconditional StyleGAN2 with codes
    of 512 numbers. Errors that `file` itself raises are passed on.
    """
    content = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about typed storages
            return _generator(_averaged(_unpickled(content, source)))
    except (InputError, ModelError) as error:
        reason = Exception.__str__(error)
        if reason.startswith(f"{source}: damaged"):
            raise
        reason = reason.removeprefix(f"{source}: refused, ")
        advice = "" if CONVERT in reason or EXPORT in reason else f"; {EXPORT}"
        raise ModelError(f"{source}: refused, {reason}{advice}") from error
    except Exception as error:  # a damaged pickle may raise any type
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ModelError(
            f"{source}: damaged, or not a network of stylegan2-ada-pytorch or stylegan3 ({reason})"
        ) from error


def _unpickled(content: bytes, source: str) -> object:
    if content.startswith((_TORCH_ZIP, _TORCH_LEGACY)):
        own = {name: NAMES[name] for name in NAMES if name.startswith(("torch_utils", "dnnlib"))}
        return read_checkpoint(io.BytesIO(content), source, {**own, "dnnlib.util.EasyDict": dict})
    return read_pickle(content, NAMES, (InertArray, InertType), "a StyleGAN2 network")


def _averaged(content: object) -> Module:
    """Return `G_ema`, the generator whose weights are averaged over training."""
    network = content.get("G_ema") if isinstance(content, dict) else content
    if not isinstance(network, Module):
        raise ModelError("it holds no 'G_ema'")
    return network


def _generator(network: Module) -> dict[str, Any]:
    mapping, synthesis = network.child("mapping"), network.child("synthesis")
    if mapping is None or synthesis is None:
        raise ModelError(f"its {network.class_name} has no mapping and synthesis networks")
    _check(network, mapping, synthesis)
    state: dict[str, Tensor] = {}
    for index in range(int(mapping.number("num_layers", 8))):
        name = f"style.{index + 1}"  # `style.0` normalises
        _add_linear(state, _child(mapping, f"fc{index}"), name, _MAPPING_RATE, "lrelu")
    _add_synthesis(state, synthesis)
    average = mapping.tensor("w_avg")
    return {"g_ema": state} if average is None else {"g_ema": state, "latent_avg": average}


def _check(network: Module, mapping: Module, synthesis: Module) -> None:
    """Raise `ModelError`, with the reason, for a network that this package cannot represent."""
    labels = network.number("c_dim", mapping.number("c_dim", 0))
    if labels:
        raise ModelError(f"it is conditional (c_dim {labels:g}): codes depend on a label")
    if synthesis.child("input") or not synthesis.child("b4"):
        other = synthesis.child("input") or any(
            re.match(r"L\d+_", name) for name in synthesis.state.get("_modules") or ()
        )
        kind = "a StyleGAN3" if other else f"a {synthesis.class_name} without a 4x4 start"
        raise ModelError(f"it is {kind}, and only StyleGAN2 is supported")
    for name in ("z_dim", "w_dim"):
        size = mapping.number(name, LATENT_DIM)
        if size != LATENT_DIM:
            raise ModelError(f"its {name} is {size:g}, expected {LATENT_DIM}")
    sides = synthesis.state.get("img_resolution")
    if isinstance(sides, list | tuple):
        raise ModelError(f"it is not square: it renders {'x'.join(map(str, sides[:2]))} px")
    colours = synthesis.number("img_channels", 3)
    if colours != 3:
        raise ModelError(f"it renders {colours:g} channels, expected 3")


def _needed(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ModelError(f"'{name}' is missing")
    return tensor


def _child(module: Module, name: str) -> Module:
    child = module.child(name)
    if child is None:
        raise ModelError(f"'{name}' is missing in its {module.class_name}")
    if child.class_name not in _CLASSES:
        raise ModelError(f"its '{name}' is a {child.class_name:.40}, which is not a known class")
    return child


def _add_linear(
    state: dict[str, Tensor], layer: Module, name: str, rate: float, activation: str
) -> None:
    """Add a fully connected layer; fold its gains into the weights where they differ."""
    weight = _needed(layer.tensor("weight"), f"{name}.weight")
    bias = _needed(layer.tensor("bias"), f"{name}.bias")
    if layer.state.get("activation", activation) != activation:
        raise ModelError(f"'{name}' has the activation {layer.state['activation']!r:.40}")
    gain = rate / math.sqrt(weight.shape[1])
    state[f"{name}.weight"] = _scaled(weight, layer.number("weight_gain", gain) / gain)
    state[f"{name}.bias"] = _scaled(bias, layer.number("bias_gain", rate) / rate)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if math.isclose(factor, 1.0, rel_tol=1e-6) else tensor.float() * factor


def _add_synthesis(state: dict[str, Tensor], synthesis: Module) -> None:
    size, index, noises = 4, 0, 0
    while synthesis.child(f"b{size}") is not None:
        block = _child(synthesis, f"b{size}")
        _check_block(block, size)
        if size == 4:
            constant = _needed(block.tensor("const"), "const")
            if constant.shape[1:] != (4, 4):
                sides = "x".join(map(str, constant.shape[1:]))
                raise ModelError(f"it is not square: its images start at {sides}, not at 4x4")
            state["input.input"] = constant[None]
            names = {"conv1": "conv1"}
            rgb = "to_rgb1"
        else:
            names = {"conv0": f"convs.{2 * index}", "conv1": f"convs.{2 * index + 1}"}
            rgb = f"to_rgbs.{index}"
            index += 1
            state[f"{rgb}.upsample.kernel"] = blur_kernel()
        for theirs, ours in names.items():
            _add_layer(state, _child(block, theirs), ours, size, noises)
            noises += 1
        _add_rgb(state, _child(block, "torgb"), rgb)
        size *= 2
    expected = synthesis.number("img_resolution", size // 2)
    if expected != size // 2:
        raise ModelError(f"it renders {expected:g} px, but has blocks up to {size // 2} px")


def _check_block(block: Module, size: int) -> None:
    kind = block.state.get("architecture", "skip")
    if kind != "skip":
        raise ModelError(f"its blocks are of the kind {kind!r:.20}, expected 'skip'")
    if size > 4:
        kernel = block.tensor("resample_filter")
        if kernel is not None and not _is_blur(kernel):
            raise ModelError("its resampling filter is not [1, 3, 3, 1]")


def _is_blur(kernel: Tensor) -> bool:
    ours = blur_kernel() / 4  # NVIDIA's kernel excludes the gain of upsampling
    return kernel.shape == ours.shape and torch.allclose(kernel.float(), ours)


def _add_layer(state: dict[str, Tensor], layer: Module, name: str, size: int, noise: int) -> None:
    """Add a style layer: modulated convolution, noise, bias and activation."""
    if layer.state.get("activation", "lrelu") != "lrelu":
        raise ModelError(f"'{name}' has the activation {layer.state['activation']!r:.40}")
    _add_linear(state, _child(layer, "affine"), f"{name}.conv.modulation", 1.0, "linear")
    state[f"{name}.conv.weight"] = _needed(layer.tensor("weight"), f"{name}.weight")[None]
    state[f"{name}.activate.bias"] = _needed(layer.tensor("bias"), f"{name}.bias")
    strength, map_ = layer.tensor("noise_strength"), layer.tensor("noise_const")
    without = torch.zeros(size, size)
    state[f"{name}.noise.weight"] = torch.zeros(1) if strength is None else strength.reshape(1)
    state[f"noises.noise_{noise}"] = (without if map_ is None else map_)[None, None]
    if layer.number("up", 1) > 1:
        state[f"{name}.conv.blur.kernel"] = blur_kernel()


def _add_rgb(state: dict[str, Tensor], layer: Module, name: str) -> None:
    weight = _needed(layer.tensor("weight"), f"{name}.weight")
    gain = 1 / math.sqrt(math.prod(weight.shape[1:]))
    _add_linear(state, _child(layer, "affine"), f"{name}.conv.modulation", 1.0, "linear")
    state[f"{name}.conv.weight"] = _scaled(weight, layer.number("weight_gain", gain) / gain)[None]
    state[f"{name}.bias"] = _needed(layer.tensor("bias"), f"{name}.bias").reshape(1, -1, 1, 1)
