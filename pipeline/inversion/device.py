"""Choose the device of an inversion and make its results reproducible."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.choices import Device, Precision
from pipeline.errors import ConfigError

_MODES = {"float32": "ieee", "tf32": "tf32"}  # PyTorch's names


def ready_device(device: Device = "auto", precision: Precision = "float32") -> str:
    """Return `cpu` or `cuda` for `device`; `auto` is a GPU if PyTorch finds one.

    Sets the precision of GPU multiplications for the whole process. By default PyTorch computes
    convolutions in TF32, whose ten fraction bits change codes by 5e-4 and images by 4e-3 of their
    largest value (church and horse, operands rounded on a CPU). `float32` is the reference's
    arithmetic, `tf32` is faster. cuDNN is limited to deterministic algorithms in both cases.

    Raises `ConfigError` for `cuda` if PyTorch finds no GPU.
    """
    on_gpu = torch.cuda.is_available()
    if device == "cuda" and not on_gpu:
        raise ConfigError(
            f"--device cuda: PyTorch {torch.__version__} finds no GPU here; install its CUDA build "
            "and a driver, or use --device cpu"
        )
    convolutions: Any = torch.backends.cudnn  # its type stubs lack `conv`
    convolutions.conv.fp32_precision = _MODES[precision]
    torch.backends.cuda.matmul.fp32_precision = _MODES[precision]
    torch.backends.cudnn.deterministic = True
    return "cuda" if on_gpu and device != "cpu" else "cpu"
