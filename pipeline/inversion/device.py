"""Choose the device of an inversion and its arithmetic, and make its results reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.choices import Device, Precision
from pipeline.errors import ConfigError

Arithmetic = Literal["bfloat16", "tf32", "float32"]  # a precision other than auto
# Flags of a CPU that multiplies bfloat16 faster than float32: Intel and AMD, Intel, ARM.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def ready_device(device: Device = "auto", precision: Precision = "float32") -> str:
    """Return `cpu` or `cuda` for `device`; `auto` is a GPU if PyTorch finds one.

    Sets the precision of a GPU's float32 multiplications for the whole process. By default PyTorch
    computes convolutions in TF32, whose ten fraction bits change codes by 5e-4 and images by 4e-3
    of their largest value (church and horse, operands rounded on a CPU). `tf32` allows it, all
    others do not: with `bfloat16` the networks that are not cast stay exact. cuDNN is limited to
    deterministic algorithms.

    Raises `ConfigError` for `cuda` if PyTorch finds no GPU.
    """
    on_gpu = torch.cuda.is_available()
    if device == "cuda" and not on_gpu:
        raise ConfigError(
            f"--device cuda: PyTorch {torch.__version__} finds no GPU here; install its CUDA build "
            "and a driver, or use --device cpu"
        )
    _allow_tf32(precision == "tf32")
    torch.backends.cudnn.deterministic = True
    return "cuda" if on_gpu and device != "cpu" else "cpu"


def _allow_tf32(allowed: bool) -> None:
    """Set the flags of each operator and the older ones alike, else PyTorch refuses to read them.

    Its compiler reads the older ones.
    """
    convolutions: Any = torch.backends.cudnn  # its type stubs lack `conv` and `rnn`
    convolutions.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    mode = "tf32" if allowed else "ieee"
    convolutions.conv.fp32_precision = convolutions.rnn.fp32_precision = mode
    torch.backends.cuda.matmul.fp32_precision = mode


def arithmetic(precision: Precision, device: str, *, gradients: bool = False) -> Arithmetic:
    """Return what `precision` is on `device`, `cpu` or `cuda`; a GPU must be one of this machine.

    `auto` is bfloat16 on a GPU that has it, and float32 on a CPU or where a method needs gradients.
    Raises `ConfigError` for an arithmetic that `device` does not have or is slower with.
    """
    if device == "cpu":
        _check_cpu(precision)
        return "float32" if precision == "auto" else precision
    has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    if precision == "bfloat16" and not has_bfloat16:
        raise ConfigError(
            f"--precision bfloat16: {torch.cuda.get_device_name()} has no bfloat16; use "
            "--precision float32"
        )
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16 and not gradients else "float32"


def _check_cpu(precision: Precision) -> None:
    if precision == "tf32":
        raise ConfigError("--precision tf32 needs a GPU, but the faces are inverted on the CPU")
    if precision == "bfloat16" and not cpu_has_bfloat16():
        raise ConfigError(
            "--precision bfloat16: this CPU has neither AVX512_BF16 nor AMX, and would be slower; "
            "use --precision float32"
        )


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32, by the flags of Linux."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
