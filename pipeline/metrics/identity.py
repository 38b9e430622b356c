"""Is it the same person: the cosine between a face network's descriptors of two images.

Every network here gives unit-length rows, and rows of NaN where it finds no face, so that whoever
multiplies two of them gets the cosine, or NaN, and counts what is missing instead of dropping it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pipeline.errors import ModelError


class IdentityNetwork(Protocol):
    """Tells people apart."""

    @property
    def definition(self) -> str:
        """Network, weights and how the face is cut out, in one line."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Descriptors [n, d] of unit length of images [n, 3, h, w] in [-1, 1]; NaN: no face."""
        ...


def load_identity(name: str, device: str = "cpu") -> IdentityNetwork | None:
    """`dlib`, `none`, or the network in a weight file (CurricularFace IR-101, ArcFace IR-SE50).

    The file is safetensors or a torch state dict, on a disk or behind any fsspec URI. Raises
    `ModelError` in one line where it is missing or fits neither network.
    """
    if name == "none":
        return None
    try:
        # Only here is dlib needed: metrics without identity run where it is not installed.
        from pipeline.metrics.arcface import read_arcface
        from pipeline.metrics.dlib_identity import DlibIdentity
        from pipeline.metrics.weight_files import read_weight_file
    except ImportError as error:
        raise ModelError(f"identity metrics need dlib: pip install dlib-bin ({error})") from error
    if name == "dlib":
        return DlibIdentity(device)
    state, sha256 = read_weight_file(name)
    return read_arcface(state, f"{name.rsplit('/', 1)[-1]} (sha256 {sha256[:12]})", device)
