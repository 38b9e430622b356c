"""ReStyle loop with as many steps as each face needs (`--steps auto`).

When a face of the batch is done, the next face of the part takes its place, so that the batch is
full until no face is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.restyle_loop import check_steps, initial_state, restyle_step
from pipeline.inversion.result import Inversion, check_tensor
from pipeline.inversion.stopping import StopRule, improvement, residual
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM


@torch.no_grad()
def invert_adaptively(
    model: RestyleModel,
    images: Tensor,  # [n, 3, *model.input_size] in [-1, 1], any n: a whole part
    rule: StopRule,
    *,
    batch_size: int,
    start: Tensor | None = None,
    start_images: Tensor | None = None,
    full_size: bool = True,
) -> Inversion:
    """Refine W+ codes like `invert`, but stop each face by `rule`.

    In the result `steps_made` are the steps of each face, `stopped` whether the rule ended it.
    `batch_size` faces are in work at a time. A face's result does not depend on other faces, up to
    rounding. A face that becomes non-finite stops at once. With `full_size` off `Inversion.images`
    are the last step's pooled images: a whole part at 1024 px takes gigabytes.

    Raises `ShapeError` if a tensor does not fit the model, `ConfigError` for the rule's steps or
    the batch size.
    """
    images = check_tensor("images", images, (None, 3, *model.input_size), model)
    check_steps(model, rule.max_steps)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    first, initial, passes = initial_state(model, images, start, start_images)
    loop = _Loop(model, images, rule, first, initial, full_size)
    faces, waiting = loop.all_faces[:batch_size], loop.all_faces[batch_size:]
    while len(faces):
        active = faces[~loop.step(faces)]
        free = batch_size - len(active)
        faces, waiting = torch.cat([active, waiting[:free]]), waiting[free:]
    return loop.result(passes)


class _Loop:
    """State of all faces of a part; `step` refines a batch of them by one step."""

    def __init__(
        self,
        model: RestyleModel,
        images: Tensor,
        rule: StopRule,
        start: Tensor,
        start_images: Tensor | None,
        full_size: bool,
    ) -> None:
        n, self.model, self.images, self.rule = len(images), model, images, rule
        self.start, self.start_images = start, start_images
        self.all_faces = torch.arange(n, device=images.device)
        self.steps_made = torch.zeros_like(self.all_faces)
        self.stopped = torch.zeros_like(self.all_faces, dtype=torch.bool)
        self.w_plus = images.new_empty(n, rule.max_steps, model.n_styles, LATENT_DIM)
        self.step_images = images.new_empty(n, rule.max_steps, *images.shape[1:])
        self.frames = images.new_empty(n, 3, *model.frame_size) if full_size else None

    def step(self, faces: Tensor) -> Tensor:
        """Refine `faces` (int64 [k]) by one step; return which of them are done, bool [k]."""
        codes, before = self._current(faces)
        targets = self.images[faces]
        frames = (
            None
            if self.frames is None
            else self.frames.new_empty(len(faces), *self.frames.shape[1:])
        )
        refined, rendered = restyle_step(self.model, targets, codes, before, frames)
        step = self.steps_made[faces]
        self.w_plus[faces, step], self.step_images[faces, step] = refined, rendered
        self.steps_made[faces] += 1
        improved = improvement(targets, before, rendered)
        done = self._is_done(faces, improved, residual(codes, refined))
        if self.frames is not None and frames is not None:
            self.frames[faces[done]] = frames[done]
        return done

    def _current(self, faces: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the codes of `faces` before their next step, and their images for the encoder."""
        has_steps = self.steps_made[faces] > 0
        last = (self.steps_made[faces] - 1).clamp_min(0)
        codes = torch.where(has_steps[:, None, None], self.w_plus[faces, last], self.start[faces])
        if self.start_images is None:
            return codes, None
        rendered, initial = self.step_images[faces, last], self.start_images[faces]
        return codes, torch.where(has_steps[:, None, None, None], rendered, initial)

    def _is_done(self, faces: Tensor, improvements: Tensor, residuals: Tensor) -> Tensor:
        steps_made = self.steps_made[faces]
        finite = improvements.isnan().logical_or(residuals.isnan()).logical_not()
        self.stopped[faces] = self.rule.should_stop(improvements, residuals, steps_made)
        return self.stopped[faces] | (steps_made >= self.rule.max_steps) | ~finite

    def result(self, passes: int) -> Inversion:
        """Return the result; `passes` are the generator passes per face before the first step."""
        steps = int(self.steps_made.max())
        for step in range(1, steps):
            ended = self.steps_made <= step
            self.w_plus[ended, step] = self.w_plus[ended, step - 1]
            self.step_images[ended, step] = self.step_images[ended, step - 1]
        step_images = self.step_images[:, :steps]
        return Inversion(
            w_plus=self.w_plus[:, :steps],
            images=step_images[:, -1] if self.frames is None else self.frames,
            step_images=step_images,
            start=self.start,
            start_images=self.start_images,
            latent_avg=self.model.latent_avg,
            steps_made=self.steps_made,
            generator_passes=self.steps_made + passes,
            stopped=self.stopped,
        )
