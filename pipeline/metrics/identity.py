"""Identity similarity: the cosine between descriptors of two images by a face network.

For domains without faces a network of image content is used. All networks return unit-length
descriptors, and NaN if they find no face. The product of two descriptors is therefore the cosine,
or NaN, so that missing faces are counted and not dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from pipeline.errors import ModelError
from pipeline.metrics.arcface import CurricularFace, read_arcface
from pipeline.metrics.names import check_is_file_name
from pipeline.models.state_files import read_state


class IdentityNetwork(ABC):
    """Network whose descriptors tell people, or image contents, apart."""

    definition: str  # network, weights and crop of the face, in one line

    def embed(self, images: Tensor) -> Tensor:
        """Return unit-length descriptors [n, d] of images [n, 3, h, w] in [-1, 1]; NaN: no face."""
        return self.begin(images)()

    @abstractmethod
    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """Start `embed`; the returned function waits for the descriptors.

        With a GPU, other processes find the faces in the meantime.
        """


def load_identity(name: str, device: str = "cpu") -> IdentityNetwork | None:
    """Return the network `name`: `dlib`, or the network of a weight file; None for `none`.

    The keys of a file say which network it is: CurricularFace IR-101 or ArcFace IR-SE50 for faces,
    MoCo v2's ResNet-50 for any content. Files are safetensors or torch state dicts, at a path or
    fsspec URI. Raises `ModelError` if the file is missing or fits none of them.
    """
    if name == "none":
        return None
    if name != "dlib":
        from pipeline.metrics.moco import is_moco, read_moco

        check_is_file_name(name)
        state, sha256 = read_state(name, "identity weights")
        weights = f"{name.rsplit('/', 1)[-1]} (sha256 {sha256[:12]})"
        if is_moco(state):
            return read_moco(state, weights, device)
    try:
        # Imported here: metrics without faces must run without dlib.
        from pipeline.metrics.arcface_identity import ArcFaceIdentity, CurricularFaceIdentity
        from pipeline.metrics.dlib_identity import DlibIdentity
        from pipeline.metrics.face_pool import face_processes
    except ImportError as error:
        raise ModelError(f"identity metrics need dlib: pip install dlib-bin ({error})") from error
    if name == "dlib":
        return DlibIdentity(device, face_processes(device))
    network = read_arcface(state, weights, device)
    if isinstance(network, CurricularFace):
        return CurricularFaceIdentity(network, weights, face_processes(device))
    return ArcFaceIdentity(network, weights)
