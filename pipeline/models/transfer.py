"""Copies between a CPU and a GPU that do not wait for each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return `array` on `device`. A GPU copies it from pinned memory, while the CPU goes on."""
    # torch warns about read-only memory, such as that of a Pillow image.
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def download(tensors: Mapping[str, Tensor]) -> Callable[[], Arrays]:
    """Start to copy tensors to numpy arrays; the returned function waits for them.

    From a GPU they come as one copy, into pinned memory. On a CPU arrays share the tensors' memory.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return lambda: arrays
    # The widest first, so that every array begins at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    packed = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in ordered])
    copied: torch.cuda.Event | None = None
    if packed.device.type == "cuda":
        host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    else:
        host = packed.cpu()

    def unpacked() -> Arrays:
        if copied is not None:
            copied.synchronize()
        arrays, first = {}, 0
        for name, tensor in ordered:
            length = math.prod(tensor.shape) * tensor.element_size()
            part = host[first : first + length].view(tensor.dtype).view(tensor.shape)
            arrays[name], first = part.numpy(), first + length
        return arrays

    return unpacked
