"""Is it the same person: the cosine between a face network's descriptors of two images.

Where there are no faces a network of contents takes their place. Every network here gives
unit-length rows, and rows of NaN where it finds no face, so that whoever multiplies two of them
gets the cosine, or NaN, and counts what is missing instead of dropping it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pipeline.errors import ModelError
from pipeline.metrics.arcface import read_arcface
from pipeline.metrics.moco import is_moco, read_moco
from pipeline.metrics.names import refuse_word
from pipeline.models.state_files import read_state


class IdentityNetwork(Protocol):
    """Tells people, or contents, apart."""

    @property
    def definition(self) -> str:
        """Network, weights and how the face is cut out, in one line."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Descriptors [n, d] of unit length of images [n, 3, h, w] in [-1, 1]; NaN: no face."""
        ...

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """Begin `embed`; calling what is given waits for the descriptors.

        Beside a GPU, faces are looked for in other processes in between.
        """
        ...


def load_identity(name: str, device: str = "cpu") -> IdentityNetwork | None:
    """`dlib`, `none`, or the network in a weight file, which its keys tell.

    CurricularFace IR-101 and ArcFace IR-SE50 compare faces, MoCo v2's ResNet-50 compares anything.
    The file is safetensors or a torch state dict, on a disk or behind any fsspec URI. Raises
    `ModelError` in one line where it is missing or fits none of them.
    """
    if name == "none":
        return None
    if name != "dlib":
        refuse_word(name)
        state, sha256 = read_state(name, "identity weights")
        weights = f"{name.rsplit('/', 1)[-1]} (sha256 {sha256[:12]})"
        if is_moco(state):
            return read_moco(state, weights, device)
    try:
        # Only here is dlib needed: metrics without faces run where it is not installed.
        from pipeline.metrics.arcface_identity import identity_of
        from pipeline.metrics.dlib_identity import DlibIdentity
        from pipeline.metrics.face_pool import face_processes
    except ImportError as error:
        raise ModelError(f"identity metrics need dlib: pip install dlib-bin ({error})") from error
    if name == "dlib":
        return DlibIdentity(device, face_processes(device))
    return identity_of(read_arcface(state, weights, device), weights, device)
