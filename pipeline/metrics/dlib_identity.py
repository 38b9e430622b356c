"""Identity by the network that `face_recognition` users know, without any weight file to fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.dlib_models import dlib_model
from pipeline.metrics.dlib_resnet import CHIP, DIMENSIONS, read_dlib_resnet
from pipeline.metrics.face_child import Cut
from pipeline.metrics.face_cutter import FaceCutter
from pipeline.metrics.pixel import enlarged

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
# What dlib's own get_face_chip leaves around the face.
CHIP_PADDING = 0.25


class DlibIdentity:
    """dlib's ResNet-29 on 150 px chips, cut at the five landmarks of the largest HOG face.

    `processes` children find and cut the faces; 0 does it in this process.
    """

    def __init__(self, device: str = "cpu", processes: int = 0) -> None:
        content = dlib_model(WEIGHTS).read_bytes()
        self.device = device
        self.network = read_dlib_resnet(content).to(device)
        self.cutter = FaceCutter(5, (CHIP, CHIP_PADDING), processes)
        self.definition = (
            "cosine of 128-d descriptors, -1..1, higher is more alike; "
            f"{WEIGHTS} (sha256 {hashlib.sha256(content).hexdigest()[:12]}) on 150 px chips "
            "at dlib's 5 landmarks; null where HOG finds no face; dlib was trained on distances, "
            "its cosines are compressed: two photos of one person 0.98 to 0.996, of strangers "
            "0.78 to 0.90 (72 London portraits, 5th to 95th percentile), so that values do not "
            "compare with those of ArcFace networks"
        )

    def embed(self, images: Tensor) -> Tensor:
        """See `pipeline.metrics.identity.IdentityNetwork.embed`."""
        return self.begin(images)()

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        """See `pipeline.metrics.identity.IdentityNetwork.begin`."""
        cuts = self.cutter.begin(enlarged(images))
        return lambda: self._describe(cuts())

    def _describe(self, cuts: list[Cut | None]) -> Tensor:
        seen = [index for index, cut in enumerate(cuts) if cut is not None]
        descriptors = torch.full((len(cuts), DIMENSIONS), float("nan"), device=self.device)
        if seen:
            stacked = np.stack([cut for cut in cuts if cut is not None])
            chips = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()
            descriptors[seen] = F.normalize(self.network(chips))
        return descriptors
