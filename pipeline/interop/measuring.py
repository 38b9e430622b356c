"""Measure imported codes: match their images, render the codes and compute the metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.alignment import AlignedFace, AlignmentSettings, IsolatedAligner
from pipeline.errors import InputError
from pipeline.images import Rejection, decode
from pipeline.interop.code_files import FaceName
from pipeline.interop.exporting import listed
from pipeline.interop.file_names import to_file_name
from pipeline.interop.pickled_codes import Codes
from pipeline.inversion.render import pooled, render_each
from pipeline.metrics import MetricEvaluator
from pipeline.models import RestyleModel
from pipeline.models.pixels import to_unit
from pipeline.storage import ReadOptions, Shard, Store, read_samples
from pipeline.storage.file_types import without_image_suffix

_NOT_FILE_NAMES = ("", ".", "..")  # last components of keys that are escaped in file names


def match_images(
    faces: Sequence[tuple[str, list[FaceName]]],
    shards: Iterable[Shard],
    options: ReadOptions | None = None,
) -> dict[tuple[str, str], list[FaceName]]:
    """Match codes to samples; return the codes by (shard id, key). Every code has one image.

    A code's name is an image id, a key or a file name, with or without an image's extension.
    Archives are read to list their keys. Raises `InputError` with the list when a name matches
    several images, several names match one image, or a code has no image.
    """
    keys_of: dict[str, list[str]] = defaultdict(list)
    for key, _ in faces:
        keys_of[without_image_suffix(key)].append(key)
    _refuse_several("several names of codes match one image", keys_of)
    owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for shard in shards:
        for key in _keys(shard, options):
            names = (f"{shard.shard_id}/{key}", key, key.rsplit("/", 1)[-1])
            name = next((n for n in map(without_image_suffix, names) if n in keys_of), None)
            if name is not None:
                owners[keys_of[name][0]].append((shard.shard_id, key))
    images_of = {name: [f"{shard}/{key}" for shard, key in owned] for name, owned in owners.items()}
    _refuse_several("names of codes match several images", images_of)
    missing = [key for key, _ in faces if key not in owners]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(f"codes without an image: {', '.join(missing[:5])}{more}")
    return {owners[key][0]: names for key, names in faces}


def _refuse_several(what: str, matches: Mapping[str, Sequence[str]]) -> None:
    """Raise `InputError` with the list of names that have more than one match."""
    if several := {name: each for name, each in matches.items() if len(each) > 1}:
        raise InputError(f"{what}: {listed(several)}")


def _keys(shard: Shard, options: ReadOptions | None) -> Iterator[str]:
    if shard.is_slice:
        return iter(shard.keys)
    return (sample.key for sample in read_samples(shard, None, options))


def _picture(results: Store, name: str, step: int, size: tuple[int, int]) -> Tensor:
    """Read the image of a step, [3, *size] in [-1, 1], from a folder of the published scripts.

    Its layout is `<step>/<file name>`. Raises `InputError` for a missing or damaged file.
    """
    base = name.rsplit("/", 1)[-1]
    stem = without_image_suffix(base)
    names = (to_file_name(base) if base in _NOT_FILE_NAMES else base, f"{stem}.png", f"{stem}.jpg")
    paths = [f"{step}/{file}" for file in (*names, f"{to_file_name(stem)}.png")]
    path = next((path for path in paths if results.exists(path)), None)
    if path is None:
        raise InputError(f"no picture of step {step} of '{name}' in '{results.root}'")
    try:
        image = decode(results.get(path))
    except Rejection as error:
        raise InputError(f"'{results.uri(path)}': {error}") from error
    return pooled(to_unit(np.asarray(image)), size)


class Measuring:
    """Align images and measure codes against them; use as a context manager.

    `results` are the images of each step; by default the model renders them.
    """

    def __init__(
        self,
        model: RestyleModel,
        settings: AlignmentSettings,
        meter: MetricEvaluator,
        results: Store | None = None,
    ) -> None:
        self.model, self.settings, self.meter = model, settings, meter
        self.results = results
        self.icc_ignored = 0  # images with a face whose colour profile was not applied
        self._aligner = IsolatedAligner(settings)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self._aligner.close()

    def align(self, content: bytes) -> dict[int, AlignedFace]:
        """Return the faces of an encoded image by face index; {} when it is rejected."""
        outcome = next(self._aligner.process([content]))
        if isinstance(outcome, Rejection):
            return {}
        self.icc_ignored += outcome.icc_ignored
        return {face.face_index: face for face in outcome.faces}

    @torch.no_grad()
    def columns(self, name: str, codes: Codes, face: AlignedFace) -> dict[str, Any]:
        """Return alignment and metrics of one face with codes [steps, n_styles, 512]."""
        target = to_unit(face.pixels)[None]
        w_plus = torch.tensor(codes, device=self.model.latent_avg.device)
        steps = self._step_images(name, w_plus)
        measures = self.meter.measure(target, steps[None], w_plus[None], self.model.latent_avg)
        return {
            **face.facts(),
            "best_step": int(measures.best_step[0]),
            **measures.row(0, len(codes)),
        }

    def _step_images(self, name: str, codes: Tensor) -> Tensor:
        size = self.model.input_size
        if self.results is not None:
            steps = range(len(codes))
            pictures = [_picture(self.results, name, step, size) for step in steps]
            return torch.stack(pictures).to(codes.device)
        return torch.stack([pooled(frame, size) for frame in render_each(self.model, codes)])
