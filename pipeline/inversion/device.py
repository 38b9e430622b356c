"""The device that codes are found on, made ready so that a rerun on it gives the same numbers."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.choices import Device, Precision
from pipeline.errors import ConfigError

_MODES = {"float32": "ieee", "tf32": "tf32"}  # PyTorch's own words


def ready_device(asked: Device = "auto", precision: Precision = "float32") -> str:
    """`cpu` or `cuda`, for `asked`; `auto` is a GPU where PyTorch finds one.

    Sets for the whole process how a GPU multiplies. PyTorch leaves convolutions to the matrix units
    in TF32, whose ten bits of fraction move codes by 5e-4 and images by 4e-3 of their largest value
    (church and horse, operands rounded on a CPU): `float32` is the reference's arithmetic, `tf32`
    the faster one. Either way cuDNN takes only algorithms that give the same numbers each time.

    Raises `ConfigError` where a GPU is asked for and PyTorch finds none.
    """
    on_gpu = torch.cuda.is_available()
    if asked == "cuda" and not on_gpu:
        raise ConfigError(
            f"--device cuda: PyTorch {torch.__version__} finds no GPU here; install its CUDA build "
            "and a driver, or use --device cpu"
        )
    convolutions: Any = torch.backends.cudnn  # whose module's types leave them out
    convolutions.conv.fp32_precision = _MODES[precision]
    torch.backends.cuda.matmul.fp32_precision = _MODES[precision]
    torch.backends.cudnn.deterministic = True
    return "cuda" if on_gpu and asked != "cpu" else "cpu"
