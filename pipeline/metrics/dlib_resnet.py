"""dlib's face recognition network in torch: the same 128 numbers, in batches, on any device.

dlib's CPU wheel has no BLAS and takes 100 ms per chip. The architecture is that of dlib's
`dnn_face_recognition_ex` (29 convolutions, He et al. 2016 with half the filters); the weights are
read from dlib's own file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError

CHIP = 150
DIMENSIONS = 128
# (channels, whether the first convolution has a stride) of the 14 residual blocks, in order.
BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2),
    (256, True),
)
# dlib's input layer subtracts these from 8-bit red, green and blue, then divides by 256.
MEANS = (122.782, 117.001, 104.298)


class _Scaled(nn.Module):
    """Convolution followed by dlib's `affine` layer, a frozen batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        # dlib pads a layer by half its kernel, or not at all if it has a stride.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.scale = nn.Parameter(torch.ones(outputs, 1, 1))
        self.offset = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.convolution(x) * self.scale + self.offset
        return scaled


def _padded(x: Tensor, shape: torch.Size) -> Tensor:
    """Return `x` with zeros at the end of its last three axes, up to `shape`."""
    channels, height, width = (
        target - size for target, size in zip(shape[1:], x.shape[1:], strict=True)
    )
    return F.pad(x, (0, width, 0, height, 0, channels))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, strided: bool) -> None:
        super().__init__()
        self.strided = strided
        self.first = _Scaled(inputs, outputs, 3, 2 if strided else 1)
        self.second = _Scaled(outputs, outputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2) if self.strided else x
        x = self.second(F.relu(self.first(x)))
        # Like dlib's add_prev: the result has the larger shape, missing values are zero.
        larger = torch.Size(max(a, b) for a, b in zip(x.shape, shortcut.shape, strict=True))
        return F.relu(_padded(x, larger) + _padded(shortcut, larger))


class DlibResnet(nn.Module):
    """Network of `dlib_face_recognition_resnet_model_v1`: face chips to descriptors."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(MEANS)[:, None, None], persistent=False)
        self.stem = _Scaled(3, 32, 7, 2)
        widths = (32, *(channels for channels, _ in BLOCKS))
        self.blocks = nn.Sequential(
            *(_Block(width, *block) for width, block in zip(widths[:-1], BLOCKS, strict=True))
        )
        self.head = nn.Linear(256, DIMENSIONS, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        """Return descriptors [n, 128], not normalised, of RGB chips [n, 3, 150, 150] in 0..255."""
        x = F.relu(self.stem((chips - self.means) / 256))
        x = self.blocks(F.max_pool2d(x, 3, stride=2))
        descriptors: Tensor = self.head(x.mean(dim=(2, 3)))
        return descriptors


def _packed(number: int) -> bytes:
    """Serialise a positive integer like dlib: a byte count, then the bytes, lowest first."""
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "little")


def _read_tensors(content: bytes, shapes: Iterator[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield the float tensors of the given (samples, channels) in `content`, in order."""
    position = 0
    for samples, channels in shapes:
        # Version 2, then four sizes, then the values as little-endian floats.
        header = b"".join(map(_packed, (2, samples, channels, 1, 1)))
        start = content.find(header, position) + len(header)
        position = start + 4 * samples * channels
        if start < len(header) or position > len(content):
            raise ModelError(
                "the dlib face recognition weights do not have the layout of "
                f"dlib_face_recognition_resnet_model_v1: no tensor of {samples}×{channels} values"
            )
        values = np.frombuffer(content[start:position], "<f4").reshape(samples, channels)
        yield torch.from_numpy(values.copy())


def read_dlib_resnet(content: bytes) -> DlibResnet:
    """Return the network with the weights of dlib's `.dat` file; raises `ModelError`."""
    network = DlibResnet()
    layers = [layer for layer in network.modules() if isinstance(layer, _Scaled)]
    shapes = [
        (count, 1)
        for layer in layers
        for count in (sum(p.numel() for p in layer.convolution.parameters()), 2 * len(layer.scale))
    ]
    tensors = _read_tensors(content, iter([*shapes, (256, DIMENSIONS)]))
    for layer in layers:
        kernel, bias = layer.convolution.weight, layer.convolution.bias
        weights, affine = next(tensors).flatten(), next(tensors).flatten()
        _fill(kernel, weights[: kernel.numel()])
        _fill(bias, weights[kernel.numel() :])
        _fill(layer.scale, affine[: len(layer.scale)])
        _fill(layer.offset, affine[len(layer.scale) :])
    _fill(network.head.weight, next(tensors).T)
    return network.requires_grad_(False).eval()


def _fill(parameter: Tensor | None, values: Tensor) -> None:
    if parameter is not None:
        parameter.data.copy_(values.reshape(parameter.shape))
