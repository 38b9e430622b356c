"""The words that settings are chosen from: types alone, so that reading a config loads no torch."""

from __future__ import annotations

from typing import Literal

MethodName = Literal["restyle", "encoder", "optimize", "hybrid"]
Space = Literal["w", "w+"]  # that an optimisation searches
Faces = Literal["largest", "all"]  # of an image
Icc = Literal["apply", "ignore"]  # embedded colour profiles of images
Fit = Literal["stretch", "crop", "pad"]  # how a crop of other proportions is resized
BestStepBy = Literal["lpips", "l2", "id_similarity", "last"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32"]  # of a GPU's multiplications
CodeType = Literal["float16", "float32"]  # of stored W+ codes
OptimiserName = Literal["adam", "ranger"]
