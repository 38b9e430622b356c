"""Choices and limits of settings; imports no torch, so that configs load without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

MethodName = Literal["restyle", "encoder", "optimize", "hybrid"]
Space = Literal["w", "w+"]  # searched by optimisation
Faces = Literal["largest", "all"]  # faces used from each image
Turns = Literal["auto", "none"]  # whether rotated photos are searched for faces too
Icc = Literal["apply", "ignore"]  # embedded colour profiles
Fit = Literal["stretch", "crop", "pad"]  # how an image of another aspect ratio is resized
BestStepBy = Literal["lpips", "l2", "id_similarity", "last"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bfloat16", "tf32", "float32"]  # arithmetic of the networks
IdentitySteps = Literal["best", "all"]  # steps whose identity is measured
CodeType = Literal["float16", "float32"]  # dtype of stored W+ codes
SearchBy = Literal["identity", "w_plus"]  # vectors that a search compares faces by
OptimiserName = Literal["adam", "ranger"]
EncoderType = Literal[  # encoders of published checkpoints: classes in `pipeline.models.encoders`
    "BackboneEncoder",
    "ProgressiveBackboneEncoder",
    "ResNetBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
    "GradualStyleEncoder",
    "ResNetGradualStyleEncoder",
    "Encoder4Editing",
]

OFFICIAL_TYPES: tuple[str, ...] = get_args(EncoderType)

# Pixels of the largest copy that is searched for a face. The default fits an image of 16 million
# pixels doubled once, as in the reference scripts; the maximum needs 2 GB.
SEARCH_PIXELS, MOST_SEARCH_PIXELS = 64_000_000, 128_000_000
# Detector score below which a face is checked again. The best of 193 faces that were detected in
# rotated photos scored 1.21.
CHECK_BELOW = 1.35
# Pixels of the longest side of the copy that is searched first.
COARSE_SIDE = 224
# Settings that older tables and trainings lack, with the values that give their behaviour.
EARLIER_SEARCH: Mapping[str, Any] = {
    "turns": "none",
    "search_pixels": 0,
    "check_below": 0.0,
    "coarse_side": 0,
}
EARLIER_ALIGNMENT: Mapping[str, Any] = {"icc": "ignore", **EARLIER_SEARCH}
