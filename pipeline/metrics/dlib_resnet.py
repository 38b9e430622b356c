"""dlib's face recognition network in torch: the same 128 numbers, in batches, on any device.

dlib's own wheel for the CPU has no BLAS and takes 100 ms a chip; these are ordinary convolutions.
The architecture is that of dlib's `dnn_face_recognition_ex` (29 convolutions, He et al. 2016 with
half the filters); the weights are read out of the very file that dlib reads.
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
# (channels, strided first) of the 14 residual blocks, in the order in which they run.
BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2),
    (256, True),
)
# What dlib's input layer subtracts from 8-bit red, green and blue before it divides by 256.
MEANS = (122.782, 117.001, 104.298)


class _Scaled(nn.Module):
    """A convolution followed by dlib's `affine` layer, which is a frozen batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        # dlib pads a layer by half its kernel, unless it has a stride: then not at all.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1))
        self.offset = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.convolution(x) * self.gain + self.offset
        return scaled


def _padded(x: Tensor, shape: torch.Size) -> Tensor:
    """`x` with zeros at the end of its last three axes, up to `shape`."""
    channels, height, width = (
        want - have for want, have in zip(shape[1:], x.shape[1:], strict=True)
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
        # dlib's add_prev: the larger of both shapes, what is missing counts as zero.
        larger = torch.Size(max(a, b) for a, b in zip(x.shape, shortcut.shape, strict=True))
        return F.relu(_padded(x, larger) + _padded(shortcut, larger))


class DlibResnet(nn.Module):
    """`dlib_face_recognition_resnet_model_v1`: face chips to descriptors."""

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
        """Descriptors [n, 128] (not of unit length) of chips [n, 3, 150, 150] in 0..255, RGB."""
        x = F.relu(self.stem((chips - self.means) / 256))
        x = self.blocks(F.max_pool2d(x, 3, stride=2))
        descriptors: Tensor = self.head(x.mean(dim=(2, 3)))
        return descriptors


def _packed(number: int) -> bytes:
    """A positive integer as dlib serialises it: a byte count, then the bytes, lowest first."""
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "little")


def _read_tensors(content: bytes, shapes: Iterator[tuple[int, int]]) -> Iterator[Tensor]:
    """The float tensors of the given (samples, channels) in `content`, in order."""
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
    """The network with the weights in `content`, a `.dat` file of dlib's; raises `ModelError`."""
    network = DlibResnet()
    layers = [layer for layer in network.modules() if isinstance(layer, _Scaled)]
    shapes = [
        (count, 1)
        for layer in layers
        for count in (sum(p.numel() for p in layer.convolution.parameters()), 2 * len(layer.gain))
    ]
    tensors = _read_tensors(content, iter([*shapes, (256, DIMENSIONS)]))
    for layer in layers:
        kernel, bias = layer.convolution.weight, layer.convolution.bias
        weights, scale = next(tensors).flatten(), next(tensors).flatten()
        _fill(kernel, weights[: kernel.numel()])
        _fill(bias, weights[kernel.numel() :])
        _fill(layer.gain, scale[: len(layer.gain)])
        _fill(layer.offset, scale[len(layer.gain) :])
    _fill(network.head.weight, next(tensors).T)
    return network.requires_grad_(False).eval()


def _fill(parameter: Tensor | None, values: Tensor) -> None:
    if parameter is not None:
        parameter.data.copy_(values.reshape(parameter.shape))
