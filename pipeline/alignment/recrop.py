"""Crop a face again from its photo, by the square that an earlier alignment stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.alignment.crop import crop_quad
from pipeline.alignment.fit import fit_to_size
from pipeline.alignment.photo import points_before, turned
from pipeline.alignment.settings import FFHQ_SIZE, AlignmentSettings
from pipeline.images import decode


def crop_again(
    content: bytes,  # encoded image
    settings: AlignmentSettings,
    quad: NDArray[Any] | None,  # [4, 2]: `align_quad` of the face; None for prealigned images
    turn_deg: int = 0,  # of the same row
) -> NDArray[np.uint8]:
    """Return the face at `settings.output_size`, uint8 [h, w, 3], as `Aligner.align` crops it.

    Needs no detector. The quad of a row is rounded to float32, which changes single pixels by one
    level at most. Raises `Rejection` if the image cannot be decoded or the quad is outside of it,
    and `ValueError` without a quad unless the settings are of prealigned images.
    """
    image = decode(content, settings.limits)
    if settings.prealigned:
        return np.asarray(fit_to_size(image, settings.output_size, settings.fit)[0])
    if quad is None:
        raise ValueError("a face of a photo has no quad")
    upright = turned(image, turn_deg)
    # Turned by the rest of a full turn, the upright view is the stored photo again.
    corners = points_before(np.asarray(quad, np.float64), -turn_deg % 360, upright.size)
    crop = crop_quad(upright, corners, max(FFHQ_SIZE, *settings.output_size))
    return np.asarray(fit_to_size(crop, settings.output_size, "stretch")[0])
