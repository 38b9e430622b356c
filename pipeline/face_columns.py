"""Columns of aligned faces and of rejects, as they travel to the table and as it has them."""

from __future__ import annotations

import pyarrow as pa

_INT, _REAL, _TEXT = pa.int32(), pa.float32(), pa.string()


def _points(count: int) -> pa.DataType:
    return pa.list_(pa.list_(_REAL, 2), count)


SOURCE_COLUMNS = {
    "key": _TEXT,  # path inside the shard
    "face_index": _INT,  # from 0, in the aligner's order
    "n_faces": _INT,  # faces found in the sample
    "source_uri": _TEXT,
    "source_sha256": _TEXT,  # of the encoded image, as it is in the input
    "width": _INT,  # of the upright original
    "height": _INT,
}
TURN_COLUMN = {
    "turn_deg": _INT,  # 0, 90, 180 or 270: clockwise turn that brings the photo's face upright
}
ALIGNMENT_COLUMNS = {
    "face_box": pa.list_(_REAL, 4),  # left, top, right, bottom in pixels of the upright original
    "landmarks": _points(68),
    "align_quad": _points(4),
    "face_px": _REAL,
    "roll_deg": _REAL,
    "yaw": _REAL,
    "sharpness": _REAL,
    "pad_fraction": _REAL,
    "detector_score": _REAL,
}
REJECT_COLUMNS = {
    "key": _TEXT,
    "face_index": _INT,  # null: the whole sample
    "source_uri": _TEXT,
    "source_sha256": _TEXT,
    "reason": _TEXT,
    "detail": _TEXT,
}
