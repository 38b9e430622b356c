"""The faces that a stop rule is calibrated on."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.alignment import Aligner, AlignmentSettings
from pipeline.errors import InputError, printable
from pipeline.images import Rejection, RejectReason
from pipeline.models.pixels import to_unit
from pipeline.storage import Sample, spread_samples

_LOGGER = logging.getLogger(__name__)


def read_crops(uri: str, limit: int, settings: AlignmentSettings) -> Tensor:
    """The faces of up to `limit` samples of an input, [n, 3, h, w] in [-1, 1], a face a sample.

    Rejects are left out, and logged. Raises `InputError` where no face is left.
    """
    aligner = Aligner(settings)
    crops = []
    for sample in spread_samples(uri, limit):
        try:
            crops.append(_crop(aligner, sample))
        except Rejection as rejection:
            _LOGGER.warning("left out: %s: %s", printable(sample.key), rejection)
    if not crops:
        raise InputError(f"'{uri}' has no face to calibrate on")
    return to_unit(np.stack(crops))


def _crop(aligner: Aligner, sample: Sample) -> NDArray[np.uint8]:
    if sample.reject:
        raise Rejection(RejectReason(sample.reject), sample.detail)
    return aligner.align(sample.content).faces[0].pixels
