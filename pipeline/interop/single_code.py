"""Read the one code of a file: `.npy`, `.npz`, or a tensor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.interop.pickled_codes import STYLE_DIM, Codes
from pipeline.interop.stacked import damage_reported, open_entry
from pipeline.storage.readers.npy import read_array


def read_code(content: bytes, source: str) -> Codes:
    """Read the one code of a `.npy`, `.pt` or `.npz` file, [1, n_styles, 512]; W has one row.

    Accepts [n, 512], [1, n, 512] and [512], of any float type. Never executes code from the file.
    Raises `InputError` in one line.
    """
    with damage_reported(source, "a code"):
        array = _array(content, source)
        code = np.asarray(array, np.float32) if array.dtype.kind == "f" else None
    if code is None:
        raise InputError(f"{source}: has values of type {array.dtype}, expected floats")
    code = code.reshape(1, 1, -1) if code.ndim == 1 else code
    code = code[None] if code.ndim == 2 else code
    if code.ndim != 3 or code.shape[0] != 1 or code.shape[2] != STYLE_DIM or not code.shape[1]:
        raise InputError(
            f"{source}: has shape {list(array.shape)}, expected one code [n_styles, {STYLE_DIM}]; "
            "import a file of many codes alone, as --from"
        )
    if not np.isfinite(code).all():
        raise InputError(f"{source}: has NaN or infinity")
    return code


def _array(content: bytes, source: str) -> Any:
    if source.endswith(".npy"):
        return read_array(content)
    if source.endswith(".npz"):
        with open_entry(io.BytesIO(content), source) as entry:
            return read_array(entry.read())
    import torch  # slow to import, not needed for numpy's files

    from pipeline.models.checkpoint import refuse_bomb

    refuse_bomb(io.BytesIO(content), source)
    tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"has a {type(tensor).__name__}, expected one tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor {list(tensor.shape)} is larger than its stored values")
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else None).numpy()
