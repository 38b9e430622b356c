"""What settings are chosen from: words and numbers alone, so that a config loads no torch."""

from __future__ import annotations

from typing import Literal

MethodName = Literal["restyle", "encoder", "optimize", "hybrid"]
Space = Literal["w", "w+"]  # that an optimisation searches
Faces = Literal["largest", "all"]  # of an image
Turns = Literal["auto", "none"]  # whether faces are looked for in turned photos too
Icc = Literal["apply", "ignore"]  # embedded colour profiles of images
Fit = Literal["stretch", "crop", "pad"]  # how a crop of other proportions is resized
BestStepBy = Literal["lpips", "l2", "id_similarity", "last"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32"]  # of a GPU's multiplications
CodeType = Literal["float16", "float32"]  # of stored W+ codes
OptimiserName = Literal["adam", "ranger"]
EncoderType = Literal[  # of official checkpoints
    "BackboneEncoder",
    "ProgressiveBackboneEncoder",
    "ResNetBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
    "GradualStyleEncoder",
    "ResNetGradualStyleEncoder",
    "Encoder4Editing",
]

# The encoders of published checkpoints, by their classes in `pipeline.models.encoders`.
OFFICIAL_TYPES = (
    "BackboneEncoder",
    "ProgressiveBackboneEncoder",
    "ResNetBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
    "GradualStyleEncoder",
    "ResNetGradualStyleEncoder",
    "Encoder4Editing",
)

# Pixels of the largest copy that is searched for a face. The default holds an image of 16 million
# doubled once, as the reference scripts search it; the bound takes 2 GB.
SEARCH_PIXELS, MOST_SEARCH_PIXELS = 64_000_000, 128_000_000
CHECK_BELOW = 1.35  # of 193 faces found in photos that are turned, the best scored 1.21
