"""Identity similarity by dlib's face recognition network, whose weights come with a package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.dlib_models import dlib_model
from pipeline.metrics.dlib_resnet import CHIP, DIMENSIONS, read_dlib_resnet
from pipeline.metrics.face_child import Crop
from pipeline.metrics.face_pool import FaceCropper
from pipeline.metrics.identity import IdentityNetwork
from pipeline.metrics.pixel import enlarge

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
# Default padding of dlib's `get_face_chip`.
CHIP_PADDING = 0.25


class DlibIdentity(IdentityNetwork):
    """dlib's ResNet-29 on 150 px chips, aligned by five landmarks of the largest HOG face.

    `processes` children find and crop the faces; with 0 this process does.
    """

    def __init__(self, device: str = "cpu", processes: int = 0) -> None:
        content = dlib_model(WEIGHTS).read_bytes()
        self.device = device
        self.network = read_dlib_resnet(content).to(device)
        self.cropper = FaceCropper(5, (CHIP, CHIP_PADDING), processes)
        self.definition = (
            "cosine of 128-d descriptors, -1..1, higher is more alike; "
            f"{WEIGHTS} (sha256 {hashlib.sha256(content).hexdigest()[:12]}) on 150 px chips "
            "at dlib's 5 landmarks; null where HOG finds no face; dlib was trained on distances, "
            "its cosines are compressed: two photos of one person 0.98 to 0.996, of strangers "
            "0.78 to 0.90 (72 London portraits, 5th to 95th percentile), so that values do not "
            "compare with those of ArcFace networks"
        )

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        crops = self.cropper.begin(enlarge(images))
        return lambda: self._describe(crops())

    def _describe(self, crops: list[Crop | None]) -> Tensor:
        indices = [index for index, crop in enumerate(crops) if crop is not None]
        descriptors = torch.full((len(crops), DIMENSIONS), float("nan"), device=self.device)
        if indices:
            stacked = np.stack([crop for crop in crops if crop is not None])
            chips = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()
            descriptors[indices] = F.normalize(self.network(chips))
        return descriptors
