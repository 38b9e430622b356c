"""Content similarity of images without faces: cosine of MoCo v2's ResNet-50 features.

The network is trained without labels (He et al. 2020; Chen et al. 2020, arXiv 2003.04297). ReStyle
uses its features in place of face identity (sec. 4 and supplement). The published file holds the
query encoder under `module.encoder_q.`, and entries that only training needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.metrics.identity import IdentityNetwork
from pipeline.models.state_files import check_entries

SIDE = 224
DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
# Keys of the query encoder in MoCo's checkpoints; parallel training adds `module.`.
_QUERY = re.compile(r"(?:module\.)?encoder_q\.(?!fc\.)(.+)")


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm and a shortcut; the 3x3 has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = torch.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return torch.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016, table 1) without classifier: [n, 3, h, w] to means [n, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = map(_stage, range(len(DEPTHS)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def _stage(index: int) -> nn.Sequential:
    width = WIDTHS[index]
    inputs = WIDTHS[0] if index == 0 else WIDTHS[index - 1] * EXPANSION
    first = Bottleneck(inputs, width, stride=1 if index == 0 else 2)
    others = (Bottleneck(width * EXPANSION, width, stride=1) for _ in range(DEPTHS[index] - 1))
    return nn.Sequential(first, *others)


class MocoSimilarity(IdentityNetwork):
    """MoCo's features of the whole image; no face is detected, so none is missing."""

    def __init__(self, network: ResNet50, weights: str) -> None:
        self.network = network
        self.definition = (
            "cosine of 2048-d features, -1..1, higher is more alike; MoCo v2 ResNet-50, "
            f"{weights}, on the whole image at 224 px by nearest neighbour, values in [-1, 1], as "
            "in ReStyle's loss for domains without faces; compares content, not persons"
        )

    def begin(self, images: Tensor) -> Callable[[], Tensor]:
        # Nearest neighbour, without ImageNet's mean and deviation, as in the published loss.
        features = F.normalize(self.network(F.interpolate(images, size=(SIDE, SIDE))), dim=1)
        return lambda: features


def is_moco(state: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a MoCo checkpoint."""
    return any(_QUERY.fullmatch(key) for key in state)


def read_moco(state: Mapping[str, Tensor], weights: str, device: str = "cpu") -> MocoSimilarity:
    """Return the query encoder of a MoCo v2 ResNet-50 checkpoint, without its head.

    `weights` names the file. Raises `ModelError` if an entry is missing or has another shape.
    """
    given = {match[1]: state[key] for key in state if (match := _QUERY.fullmatch(key))}
    with torch.device("meta"):
        network = ResNet50()
    expected = network.state_dict()
    check_entries(expected, given, f"MoCo weights {weights} are no MoCo v2 ResNet-50")
    # A file may have half precision; images are float32.
    given = {key: value.to(expected[key].dtype) for key, value in given.items()}
    network.load_state_dict(given, assign=True)
    network.requires_grad_(False).eval().to(device)
    return MocoSimilarity(network, weights)
