"""Measure the quality of a batch of inversions, per face and per step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.choices import BestStepBy, IdentitySteps
from pipeline.errors import ConfigError, ShapeError
from pipeline.metrics import pixel
from pipeline.metrics.identity import load_identity
from pipeline.metrics.latent_stats import residual_norm, w_avg_distance, w_plus_variance
from pipeline.metrics.lpips import load_lpips
from pipeline.metrics.pixel import NETWORK_SIDE, enlarge, peak_signal_to_noise
from pipeline.metrics.registry import BEST_ALONE, BY_NAME, METRICS, OF_CODE, PER_STEP, QUALITY
from pipeline.models.transfer import Arrays, download

Floats = NDArray[np.float32]
Rows = slice | Tensor  # faces: all, or int64 indices
Place = tuple[Rows, int | Tensor]  # images: of faces, at one step or each at its own

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


def best_step(measures: Tensor, last: Tensor, *, higher_is_better: bool = False) -> Tensor:
    """Return the index of each row's best column, the first of equals; `last` [n] if all are NaN.

    `measures` are [n, steps] of a distance, or of a similarity with `higher_is_better`.
    """
    missing = measures.isnan()
    distances = (-measures if higher_is_better else measures).masked_fill(missing, torch.inf)
    return torch.where(missing.all(dim=1), last, distances.argmin(dim=1))


@dataclass(frozen=True)
class _Chunk:
    """Measures of one chunk of faces, on its device; descriptors may still be computed."""

    values: dict[str, Tensor]  # [n, steps], without identity; NaN where an image is not usable
    asked: Tensor  # bool [n, steps], where an identity is measured
    target_finite: Tensor  # bool [n]
    places: Sequence[Place]  # images whose identity is measured
    pending: Sequence[Callable[[], Tensor]]  # of the targets, then of `places`; empty: no network

    @cached_property
    def descriptors(self) -> list[Tensor]:
        """Descriptors [n, d] of the targets, then of `places`; waits for them."""
        return [descriptors() for descriptors in self.pending]

    def similarities(self) -> Tensor:
        """Return similarities [n, steps], NaN where none was asked for."""
        values = torch.full(self.asked.shape, float("nan"), device=self.asked.device)
        if self.descriptors:
            targets, *reconstructions = self.descriptors
            for (rows, step), vectors in zip(self.places, reconstructions, strict=True):
                values[rows, step] = (vectors * targets[rows]).sum(dim=1).clamp(-1, 1)
        return _nan_unless(self.asked, values)

    def targets(self) -> Tensor | None:
        """Return the targets' descriptors [n, d], NaN without a face; None without a network."""
        if not self.descriptors:
            return None
        return _nan_unless(self.target_finite[:, None], self.descriptors[0].float())


class MetricEvaluator:
    """Measures inversions; loads LPIPS and an identity network once.

    `identity` is `dlib`, `none` (similarities are NaN), or the URI of a weight file of
    CurricularFace, ArcFace or, for images without faces, MoCo. `best_step_by` is the metric that
    chooses the best step, or `last`. With `identity_steps` `best` identity is measured on the best
    step alone, and NaN for other steps. `dtype` is that of the convolutions of LPIPS.
    """

    def __init__(
        self,
        device: str = "cpu",
        identity: str = "dlib",
        best_step_by: BestStepBy = "lpips",
        identity_steps: IdentitySteps = "all",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if best_step_by not in get_args(BestStepBy):
            choices = ", ".join(get_args(BestStepBy))
            raise ConfigError(f"best_step_by is {best_step_by!r}, expected one of {choices}")
        if best_step_by == "id_similarity" and (identity == "none" or identity_steps == "best"):
            why = "identity of every step" if identity != "none" else "identity network, not 'none'"
            article = "the" if identity != "none" else "an"
            raise ConfigError(f"best_step_by id_similarity needs {article} {why}")
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.best_step_by, self.identity_steps = best_step_by, identity_steps
        self.lpips = load_lpips(device, dtype)
        self.identity = load_identity(identity, device)
        self.identity_definition = self.identity.definition if self.identity else "not measured"
        self.definitions = self._definitions(dtype)

    def _definitions(self, dtype: torch.dtype) -> dict[str, str]:
        """Return what each metric is, for the table's card."""
        best = f"step {self.best_step_by}, counted from 1; the last one where no step has a number"
        definitions = {metric.name: metric.definition for metric in METRICS if metric.definition}
        if dtype != torch.float32:
            definitions["lpips"] += f"; convolutions in {str(dtype).removeprefix('torch.')}"
        identity = self.identity_definition
        if self.identity and self.identity_steps == "best":
            identity += BEST_ALONE
        return definitions | {"id_similarity": identity, "best_step": best}

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
        return self.begin(targets, step_images, w_plus, latent_avg, start, steps_made)()

    @torch.inference_mode()
    def begin(
        self,
        targets: Tensor,
        step_images: Tensor,
        w_plus: Tensor,
        latent_avg: Tensor,
        start: Tensor | None = None,
        steps_made: Tensor | None = None,
    ) -> Callable[[], Measures]:
        """Start `measure`; the returned function waits for the metrics.

        A GPU computes in the meantime, and other processes find the faces.
        """
        _check_shapes(targets, step_images, w_plus, latent_avg)
        is_made = _made_mask(w_plus, steps_made).to(self.device)
        all_made = steps_made is None
        size = CHUNK.get(self.device.type, CHUNK["cpu"])
        chunks = [
            self._compare(
                x.to(self.device, torch.float32), y.to(self.device, torch.float32), part, all_made
            )
            for x, y, part in zip(
                targets.split(size), step_images.split(size), is_made.split(size), strict=True
            )
        ]
        values = {name: torch.cat([c.values[name] for c in chunks]) for name in chunks[0].values}
        if self.best_step_by == "id_similarity":
            values["id_similarity"] = torch.cat([chunk.similarities() for chunk in chunks])
        best = self._best(values, is_made.sum(dim=1))
        results = download(
            {name: value for name, value in values.items() if name in QUALITY}
            | _of_codes(w_plus, latent_avg, start, is_made, best)
            | {"best": best, "asked": torch.cat([chunk.asked for chunk in chunks])}
        )
        return lambda: self._finish(chunks, results)

    @torch.inference_mode()
    def _finish(self, chunks: list[_Chunk], results: Callable[[], Arrays]) -> Measures:
        """Wait for the results and, where it is measured, the identity.

        A GPU may compute the next batch already: identity does not wait in its stream.
        """
        values = dict(results())
        with torch.cuda.stream(self._stream):
            values["id_similarity"] = _to_numpy(torch.cat([c.similarities() for c in chunks]))
            targets = [vectors for chunk in chunks if (vectors := chunk.targets()) is not None]
            identities = _to_numpy(torch.cat(targets)) if targets else None
        asked, best = values.pop("asked"), values.pop("best")
        missed = asked & np.isnan(values["id_similarity"])
        return Measures(values, best.astype("i4") + 1, int(missed.sum()), identities)

    def _best(self, values: Mapping[str, Tensor], steps_made: Tensor) -> Tensor:
        """Return the index of the best step, int64 [n]."""
        name, last = self.best_step_by, steps_made - 1
        if name not in values:
            return last
        return best_step(values[name], last, higher_is_better=BY_NAME[name].higher_is_better)

    def _compare(
        self, targets: Tensor, step_images: Tensor, is_made: Tensor, all_made: bool
    ) -> _Chunk:
        """Measure the images of one chunk, and begin to describe the faces in them."""
        target_finite, finite = _finite(targets), _finite(step_images)
        usable = finite & target_finite[:, None] & is_made
        # Non-finite images are replaced by grey for the networks; their values become NaN below.
        targets = _grey_unless(target_finite, targets)
        places = _places(is_made, all_made)

        def reconstructions(rows: Rows, step: int | Tensor) -> Tensor:
            return _grey_unless(usable[rows, step], step_images[rows, step]).clamp(-1, 1)

        asked, pending = usable if self.identity else torch.zeros_like(usable), []
        if self.identity_steps == "all":
            pending = self._begin_identity(targets, itertools.starmap(reconstructions, places))
        measures = self._measure_images(targets, places, reconstructions, is_made.shape)
        measures = {name: _nan_unless(usable, values) for name, values in measures.items()}
        measures["psnr"] = peak_signal_to_noise(measures["l2"])
        if self.identity_steps == "best":
            best = self._best(measures, is_made.sum(dim=1))
            places = [(torch.arange(len(best), device=best.device), best)]
            pending = self._begin_identity(targets, itertools.starmap(reconstructions, places))
            asked = asked & torch.zeros_like(usable).scatter_(1, best[:, None], value=True)
        return _Chunk(measures, asked, target_finite, places, pending)

    def _measure_images(
        self,
        targets: Tensor,
        places: Sequence[Place],
        reconstructions: Callable[[Rows, int | Tensor], Tensor],
        shape: torch.Size,
    ) -> dict[str, Tensor]:
        """Return the metrics of pixels and LPIPS, each [n, steps]; NaN for steps not made."""
        target_features = self._embed(targets)
        names = [*_FUNCTIONS, "lpips"]
        measures = {name: targets.new_full(shape, float("nan")) for name in names}
        for rows, step in places:
            # Computed twice: holding all takes as much as `step_images`.
            images = reconstructions(rows, step)
            for name, function in _FUNCTIONS.items():
                measures[name][rows, step] = function(images, targets[rows])
            features = target_features
            if len(images) < len(targets):
                features = [layer[rows] for layer in target_features]
            measures["lpips"][rows, step] = self.lpips.compare(features, self._embed(images))
        return measures

    def _begin_identity(
        self, targets: Tensor, batches: Iterable[Tensor]
    ) -> list[Callable[[], Tensor]]:
        """Start the identity of each batch: it runs beside a GPU's other work."""
        if self.identity is None:
            return []
        return [self.identity.begin(batch) for batch in itertools.chain([targets], batches)]

    def _embed(self, images: Tensor) -> list[Tensor]:
        if 4 * max(images.shape[-2:]) == NETWORK_SIDE:
            return self.lpips.embed_enlarged(images)
        # On a CPU a fifth faster than channels first.
        return self.lpips.embed(enlarge(images).contiguous(memory_format=torch.channels_last))


def _places(is_made: Tensor, all_made: bool) -> list[Place]:
    """Return the faces that made each step, up to the last step of any face.

    Where all are made this asks nothing of a GPU, which would have to finish first.
    """
    if all_made:
        return [(slice(None), step) for step in range(is_made.shape[1])]
    made = enumerate(step.nonzero()[:, 0] for step in is_made.T)
    return [(rows, step) for step, rows in made if len(rows)]


def _of_codes(
    w_plus: Tensor, latent_avg: Tensor, start: Tensor | None, is_made: Tensor, best: Tensor
) -> dict[str, Tensor]:
    """Return the metrics of codes: `residual_norm` [n, steps], others [n] of the best step's.

    Residuals are NaN for steps that were not made, and where they are not finite.
    """
    codes, average = w_plus.float(), latent_avg.to(w_plus.device, torch.float32)
    initial = average if start is None else start.to(average)
    best_codes = codes[torch.arange(len(codes), device=codes.device), best.to(codes.device)]
    norms = _nan_unless(is_made.to(codes.device), residual_norm(codes, initial))
    return {
        "residual_norm": _nan_unless(~norms.isinf(), norms),
        "w_plus_variance": w_plus_variance(best_codes),
        "w_avg_distance": w_avg_distance(best_codes, average),
    }


def _made_mask(w_plus: Tensor, steps_made: Tensor | None) -> Tensor:
    """Return a mask of the steps that each face made, bool [n, steps]."""
    n, steps = w_plus.shape[:2]
    if steps_made is None:
        return torch.ones(n, steps, dtype=torch.bool, device=w_plus.device)
    return torch.arange(steps, device=steps_made.device)[None] < steps_made[:, None]


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
