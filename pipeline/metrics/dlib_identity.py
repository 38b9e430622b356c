"""Identity by the network that `face_recognition` users know, without any weight file to fetch."""

from __future__ import annotations

import hashlib

import dlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.metrics.dlib_resnet import CHIP, DIMENSIONS, read_dlib_resnet
from pipeline.metrics.faces import dlib_model_file, find_faces
from pipeline.metrics.pixel import enlarged, to_pixels

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
# What dlib's own get_face_chip leaves around the face.
CHIP_PADDING = 0.25


class DlibIdentity:
    """dlib's ResNet-29 on 150 px chips, cut at the five landmarks of the largest HOG face."""

    def __init__(self, device: str = "cpu") -> None:
        content = dlib_model_file(WEIGHTS).read_bytes()
        self.device = device
        self.network = read_dlib_resnet(content).to(device)
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
        images = enlarged(images)
        faces = find_faces(images, points=5)
        seen = [index for index, face in enumerate(faces) if face is not None]
        descriptors = torch.full((len(faces), DIMENSIONS), float("nan"), device=self.device)
        if seen:
            pixels = to_pixels(images)
            cut = [dlib.get_face_chip(pixels[i], faces[i], CHIP, CHIP_PADDING) for i in seen]
            chips = torch.from_numpy(np.stack(cut)).to(self.device).permute(0, 3, 1, 2).float()
            descriptors[seen] = F.normalize(self.network(chips))
        return descriptors
