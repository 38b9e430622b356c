"""Fit the built-in directions smile, pose and age to the pairs of the demo model.

    python -m pipeline.demo.directions PAIRS [FOLDER]

FOLDER is where they are written, by default the package's own.
Smile and pose are measured on the pairs' images, by landmarks. Age was judged by eye, for the first
280 pairs (`ages.csv`). A direction has unit length. Smile is the covariance of its label with W,
pose the ridge solution, age the difference of means. Printed beside each is the correlation of
codes along it with the label, on every fifth labelled pair, fitted without these.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.alignment.detection import Detection, find_landmarks
from pipeline.alignment.quality import yaw
from pipeline.demo.build import LICENCE
from pipeline.editing.directions import Direction, save_direction
from pipeline.editing.w_space import w_space_of
from pipeline.models import load_model
from pipeline.storage import Store
from pipeline.storage.readers.pairs import pair_tars
from pipeline.training.latent_pairs import LatentPairs, load_pairs

Numbers = NDArray[np.float64]

# dlib's box of the face in FFHQ crops, as fractions of the side; mean of 40 faces.
FACE_BOX = (0.18, 0.28, 0.79, 0.90)
MEASURED_AT = 256  # pixels: enlarged, so that landmarks, whole pixels, are fine enough
EVERY = 4  # pairs of which one is measured
# Ridge penalty in units of W's mean variance; None is its limit, the covariance.
PENALTIES: Mapping[str, float | None] = {"smile": None, "pose": 1.0}


def smile_of(landmarks: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return lift of the mouth's corners, width and opening of the mouth, in eye distances.

    `landmarks` are dlib's, [68, 2]. Lift is measured across the line of the eyes.
    """
    left, right = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    distance = float(np.linalg.norm(right - left)) or 1.0
    along = (right - left) / distance
    down = np.array([-along[1], along[0]])
    corners = landmarks[[48, 54]].mean(axis=0)
    middle = landmarks[[51, 57, 62, 66]].mean(axis=0)
    lift = float((middle - corners) @ down)
    width = float(np.linalg.norm(landmarks[54] - landmarks[48]))
    opening = float((landmarks[66] - landmarks[62]) @ down)
    return lift / distance, width / distance, opening / distance


def measured(pairs: LatentPairs) -> dict[str, Numbers]:
    """Return the labels `smile` and `pose` of the images of `pairs`, standardised, [n]."""
    left, top, right, bottom = (edge * MEASURED_AT for edge in FACE_BOX)
    box = Detection(left, top, right, bottom, score=1.0)
    smiles, yaws = [], []
    for image in pairs.images.permute(0, 2, 3, 1).numpy():
        large = Image.fromarray(image).resize((MEASURED_AT,) * 2, Image.Resampling.BILINEAR)
        landmarks = find_landmarks(np.asarray(large), box)
        smiles.append(smile_of(landmarks))
        yaws.append(yaw(landmarks))
    smile = _standardised(np.array(smiles)).sum(axis=1)
    return {"smile": _standardised(smile), "pose": _standardised(np.array(yaws))}


def read_ages() -> tuple[NDArray[np.intp], Numbers, Numbers]:
    """Return numbers of the judged pairs, and ±1 for old or young and for men or women, [n]."""
    text = (resources.files("pipeline.demo") / "ages.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    age = np.array([1.0 if row["age"] == "old" else -1.0 for row in rows])
    sex = np.array([1.0 if row["sex"] == "man" else -1.0 for row in rows])
    return np.array([int(row["pair"]) for row in rows]), age, sex


def fit(codes: Numbers, label: Numbers, penalty: float | None = None) -> Numbers:
    """Return the unit vector [512] along which `label` [n] grows with codes [n, 512].

    With a penalty it is the ridge solution, in units of the mean variance of a code's numbers.
    """
    centred = codes - codes.mean(axis=0)
    slope = centred.T @ (label - label.mean()) / len(label)
    if penalty is not None:
        covariance = centred.T @ centred / len(label)
        ridge = penalty * np.trace(covariance) / len(slope) * np.eye(len(slope))
        slope = np.linalg.solve(covariance + ridge, slope)
    return _unit(slope)


def fit_age(codes: Numbers, age: Numbers, sex: Numbers) -> Numbers:
    """Return the direction from young to old, the mean of both sexes', without that of sex."""
    steps = [
        codes[(sex == one) & (age > 0)].mean(axis=0) - codes[(sex == one) & (age < 0)].mean(axis=0)
        for one in (-1.0, 1.0)
    ]
    men = _unit(codes[sex > 0].mean(axis=0) - codes[sex < 0].mean(axis=0))
    step = (steps[0] + steps[1]) / 2
    return _unit(step - (step @ men) * men)


def _unit(vector: Numbers) -> Numbers:
    unit: Numbers = vector / np.linalg.norm(vector)
    return unit


def _standardised(values: Numbers) -> Numbers:
    scaled: Numbers = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-12)
    return scaled


def correlation(direction: Numbers, codes: Numbers, label: Numbers) -> float:
    """Return the correlation of `label` [n] with the codes [n, 512] along `direction`."""
    return round(float(np.corrcoef(codes @ direction, label)[0, 1]), 3)


def fit_all(pairs: LatentPairs) -> dict[str, tuple[Numbers, dict[str, float | int]]]:
    """Return each direction by name, with what its record says: faces, and held-out correlation."""
    codes = pairs.w.double().numpy()
    fitted: dict[str, tuple[Numbers, dict[str, float | int]]] = {}
    for name, label in measured(pairs[::EVERY]).items():
        known, penalty = codes[::EVERY], PENALTIES[name]
        kept = np.arange(len(label)) % 5 != 0
        score = correlation(fit(known[kept], label[kept], penalty), known[~kept], label[~kept])
        fitted[name] = fit(known, label, penalty), {"faces": len(label), "correlation": score}
    numbers, age, sex = read_ages()
    judged, kept = codes[numbers], np.arange(len(age)) % 5 != 0
    score = correlation(fit_age(judged[kept], age[kept], sex[kept]), judged[~kept], age[~kept])
    fitted["age"] = fit_age(judged, age, sex), {"faces": len(age), "correlation": score}
    return fitted


def main(argv: list[str]) -> int:
    """Fit the three directions to the pairs in the folder `argv[0]`; write them, print scores."""
    shards = pair_tars(argv[0])
    model = load_model("demo")
    own = str(resources.files("pipeline.editing") / "builtin")
    place = Store(argv[1] if len(argv) > 1 else own)
    for name, (row, facts) in fit_all(load_pairs(shards, 128)).items():
        direction = Direction(
            name,
            row.astype(np.float32)[None],
            w_space=w_space_of(model),
            facts={**facts, "licence": LICENCE},
        )
        place.put(f"{name}.safetensors", save_direction(direction))
        print(json.dumps({"direction": name, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
