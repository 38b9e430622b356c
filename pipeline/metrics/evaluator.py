"""Measure the quality of a batch of inversions, per face and per step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.choices import BestStepBy
from pipeline.errors import ConfigError, ShapeError
from pipeline.metrics import pixel
from pipeline.metrics.identity import load_identity
from pipeline.metrics.latent_stats import residual_norm, w_avg_distance, w_plus_variance
from pipeline.metrics.lpips import load_lpips
from pipeline.metrics.pixel import enlarge, peak_signal_to_noise
from pipeline.metrics.registry import BY_NAME, METRICS, OF_CODE, PER_STEP, QUALITY

Floats = NDArray[np.float32]

# Faces per chunk; AlexNet's feature maps take 2.5 MB per face.
CHUNK = {"cpu": 16, "cuda": 128}

_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    metric.name: getattr(pixel, metric.function) for metric in METRICS if metric.function
}


@dataclass(frozen=True)
class Measures:
    """Values by metric, from `MetricEvaluator.measure`; NaN if a value does not exist.

    `measures[name]` is float32 [n, steps], or [n] of the best step's code. Steps are columns; step
    numbers count from 1, as in the table. PSNR is infinite for an exact reconstruction.
    """

    values: Mapping[str, Floats]
    best_step: NDArray[np.int32]  # [n], 1..steps
    identity_missed: int  # (face, step) pairs without a similarity because no face was found
    # Descriptors of the targets, [n, d] of unit length; a row is NaN where no face was found.
    identities: Floats | None = None  # None: no identity network

    def __getitem__(self, name: str) -> Floats:
        return self.values[name]

    def identity(self, face: int) -> Floats | None:
        """Return the descriptor [d] of one face's target; None if there is none."""
        vector: Floats | None = None if self.identities is None else self.identities[face]
        return None if vector is None or np.isnan(vector).any() else vector

    def row(self, face: int, steps: int) -> dict[str, Any]:
        """Return the table's columns of one face that made `steps`; None where NaN."""
        best = int(self.best_step[face]) - 1
        row: dict[str, Any] = {}
        for name in PER_STEP:
            values = self[name][face, :steps]
            row[f"{name}_per_step"] = [_optional(value) for value in values]
            if name in QUALITY:
                row[name] = _optional(values[best])
        return row | {name: float(self[name][face]) for name in OF_CODE}


def _optional(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def best_step(
    measures: Floats,
    last: NDArray[np.int32],  # [n], each row's last step, from 1
    higher_is_better: bool = False,
) -> NDArray[np.int32]:
    """Return the number (from 1) of each row's best column, the first of equals; `last` if all NaN.

    `measures` are [n, steps] of a distance, or of a similarity with `higher_is_better`.
    """
    distances = -measures if higher_is_better else measures
    missing = np.isnan(distances)
    best = np.where(missing, np.inf, distances).argmin(axis=1) + 1
    numbers: NDArray[np.int32] = np.where(missing.all(axis=1), last, best).astype("i4")
    return numbers


class MetricEvaluator:
    """Measures inversions; loads LPIPS and an identity network once.

    `identity` is `dlib`, `none` (similarities are NaN), or the URI of a weight file of
    CurricularFace, ArcFace or, for images without faces, MoCo. `best_step_by` is the metric that
    chooses the best step, or `last`.
    """

    def __init__(
        self,
        device: str = "cpu",
        identity: str = "dlib",
        best_step_by: BestStepBy = "lpips",
    ) -> None:
        if best_step_by not in get_args(BestStepBy):
            choices = ", ".join(get_args(BestStepBy))
            raise ConfigError(f"best_step_by is {best_step_by!r}, expected one of {choices}")
        if best_step_by == "id_similarity" and identity == "none":
            raise ConfigError("best_step_by id_similarity needs an identity network, not 'none'")
        self.device = torch.device(device)
        self.best_step_by = best_step_by
        self.lpips = load_lpips(device)
        self.identity = load_identity(identity, device)
        best = f"step {best_step_by}, counted from 1; the last one where no step has a number"
        self.definitions: dict[str, str] = {
            **{metric.name: metric.definition for metric in METRICS if metric.definition},
            "id_similarity": self.identity.definition if self.identity else "not measured",
            "best_step": best,
        }

    @torch.inference_mode()
    def measure(
        self,
        targets: Tensor,  # [n, 3, h, w] in [-1, 1]
        step_images: Tensor,  # [n, steps, 3, h, w], any range, any float dtype
        w_plus: Tensor,  # [n, steps, n_styles, 512]
        latent_avg: Tensor,  # [n_styles, 512]
        start: Tensor | None = None,  # [n, n_styles, 512], codes before step 1: the average
        steps_made: Tensor | None = None,  # int [n], 1..steps: all of them
    ) -> Measures:
        """Return all metrics of `n` faces; raises `ShapeError` if the shapes are inconsistent.

        A target or reconstruction with NaN or infinite values gets NaN and affects no other. Steps
        beyond a face's `steps_made` are not measured: they are NaN.
        """
        _check_shapes(targets, step_images, w_plus, latent_avg)
        is_made = _made_mask(w_plus, steps_made).to(self.device)
        chunk = CHUNK.get(self.device.type, CHUNK["cpu"])
        rows = [
            self._compare(x.to(self.device, torch.float32), y.to(self.device, torch.float32), part)
            for x, y, part in zip(
                targets.split(chunk), step_images.split(chunk), is_made.split(chunk), strict=True
            )
        ]
        missed = sum(int(missing.sum()) for _, missing, _ in rows)
        values = {
            name: torch.cat([measured[name] for measured, _, _ in rows]).cpu().numpy()
            for name in QUALITY
        }
        identities = [faces for _, _, faces in rows if faces is not None]
        last = _to_numpy(is_made.sum(dim=1)).astype("i4")
        best = best_step(
            values.get(self.best_step_by, np.full(is_made.shape, np.nan, np.float32)),
            last,
            higher_is_better=self._higher_is_better,
        )
        codes, average = w_plus.float(), latent_avg.to(w_plus.device, torch.float32)
        initial = average if start is None else start.to(average)
        steps = torch.from_numpy(best - 1).long().to(codes.device)
        best_codes = codes[torch.arange(len(codes), device=codes.device), steps]
        values |= {
            "residual_norm": _to_numpy(_residuals(codes, initial, is_made)),
            "w_plus_variance": _to_numpy(w_plus_variance(best_codes)),
            "w_avg_distance": _to_numpy(w_avg_distance(best_codes, average)),
        }
        vectors = _to_numpy(torch.cat(identities)) if identities else None
        return Measures(values, best, missed, vectors)

    def _compare(
        self, targets: Tensor, step_images: Tensor, is_made: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Measure one chunk of faces.

        Returns each metric of images and a mask of missed faces, all [n, steps], and the targets'
        descriptors [n, d], None without an identity network.
        """
        target_finite, finite = _finite(targets), _finite(step_images)
        usable = finite & target_finite[:, None] & is_made
        # Non-finite images are replaced by grey for the networks; their values become NaN below.
        targets = _grey_unless(target_finite, targets)
        faces = [rows for step in is_made.T if len(rows := step.nonzero()[:, 0])]

        def reconstructions(step: int) -> Tensor:
            rows = faces[step]
            return _grey_unless(usable[rows, step], step_images[rows, step]).clamp(-1, 1)

        batches = itertools.chain([targets], map(reconstructions, range(len(faces))))
        pending = self._begin_identity(batches)
        target_features = self._embed(targets)
        measures = {name: targets.new_full(is_made.shape, float("nan")) for name in QUALITY}
        for step, rows in enumerate(faces):
            images = reconstructions(
                step
            )  # computed twice: holding all takes as much as step_images
            for name, function in _FUNCTIONS.items():
                measures[name][rows, step] = function(images, targets[rows])
            features = target_features
            if len(rows) < len(targets):
                features = [layer[rows] for layer in target_features]
            measures["lpips"][rows, step] = self.lpips.compare(features, self._embed(images))
        identities = None
        if pending:
            target_faces, *step_faces = [descriptors() for descriptors in pending]
            identities = _nan_unless(target_finite[:, None], target_faces.float())
            for step, rows in enumerate(faces):
                cosines = (step_faces[step] * target_faces[rows]).sum(dim=1)
                measures["id_similarity"][rows, step] = cosines.clamp(-1, 1)
        missed = usable & measures["id_similarity"].isnan() & (self.identity is not None)
        result = {name: _nan_unless(usable, values) for name, values in measures.items()}
        return result | {"psnr": peak_signal_to_noise(result["l2"])}, missed, identities

    @property
    def _higher_is_better(self) -> bool:
        return self.best_step_by in BY_NAME and BY_NAME[self.best_step_by].higher_is_better

    def _begin_identity(self, batches: Iterable[Tensor]) -> list[Callable[[], Tensor]]:
        """Start the identity of each batch before LPIPS: with a GPU both run at the same time."""
        return [] if self.identity is None else [self.identity.begin(batch) for batch in batches]

    def _embed(self, images: Tensor) -> list[Tensor]:
        # On a CPU a fifth faster than channels first.
        return self.lpips.embed(enlarge(images).contiguous(memory_format=torch.channels_last))


def _made_mask(w_plus: Tensor, steps_made: Tensor | None) -> Tensor:
    """Return a mask of the steps that each face made, bool [n, steps]."""
    n, steps = w_plus.shape[:2]
    if steps_made is None:
        return torch.ones(n, steps, dtype=torch.bool)
    return torch.arange(steps)[None] < steps_made.cpu()[:, None]


def _residuals(codes: Tensor, initial: Tensor, is_made: Tensor) -> Tensor:
    """Return `residual_norm` of the steps that were made; NaN if it is not finite."""
    norms = _nan_unless(is_made.to(codes.device), residual_norm(codes, initial))
    return _nan_unless(~norms.isinf(), norms)


def _nan_unless(keep: Tensor, values: Tensor) -> Tensor:
    """Return `values` with NaN where `keep` is false."""
    return torch.where(keep, values, torch.full_like(values, float("nan")))


def _finite(images: Tensor) -> Tensor:
    """Return a mask of images (the last three axes) with only finite values."""
    return images.isfinite().flatten(-3).all(dim=-1)


def _grey_unless(keep: Tensor, images: Tensor) -> Tensor:
    """Return `images`, with 0 (grey) for those where `keep` is false."""
    return torch.where(keep[..., None, None, None], images, torch.zeros_like(images))


def _to_numpy(values: Tensor) -> Floats:
    array: Floats = values.cpu().numpy()
    return array


def _check_shapes(targets: Tensor, step_images: Tensor, w_plus: Tensor, latent_avg: Tensor) -> None:
    n, steps = w_plus.shape[:2] if w_plus.ndim == 4 else (-1, -1)
    if (
        steps < 1
        or targets.shape[0] != n
        or targets.shape[1:2] != (3,)
        or step_images.shape != (n, steps, *targets.shape[1:])
        or latent_avg.shape != w_plus.shape[2:]
    ):
        raise ShapeError(
            "metrics need targets [n, 3, h, w], step_images [n, steps, 3, h, w], w_plus "
            "[n, steps, n_styles, 512] and latent_avg [n_styles, 512], not "
            + ", ".join(str(list(t.shape)) for t in (targets, step_images, w_plus, latent_avg))
        )
