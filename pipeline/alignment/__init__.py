"""Face alignment: detection, landmarks, FFHQ crop, quality measures, and a child process."""

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.crop import crop_quad, ffhq_quad, pad_fraction
from pipeline.alignment.face import AlignedFace, Alignment
from pipeline.alignment.settings import AlignmentSettings
from pipeline.alignment.worker import IsolatedAligner, Outcome

__all__ = [
    "AlignedFace",
    "Aligner",
    "Alignment",
    "AlignmentSettings",
    "IsolatedAligner",
    "Outcome",
    "crop_quad",
    "ffhq_quad",
    "pad_fraction",
]
