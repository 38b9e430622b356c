"""ReStyle with as many steps as each face needs (`--steps auto`).

Faces of one part share a batch; one that is done leaves it and the next takes its place, so that
the batch is full until the part runs out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.restyle_loop import (
    check_steps,
    restyle_step,
    start_beside,
    start_codes,
    start_renders,
)
from pipeline.inversion.result import Inversion
from pipeline.inversion.shapes import of_shape
from pipeline.inversion.stopping import StopRule, gain, residual
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
    """`invert`, but each face stops when `rule` says so: `steps_made` has when, `stopped` if ever.

    `batch_size` faces are worked on at a time. A face's result does not depend on the others
    beyond rounding. A face that is not finite stops at once. With `full_size` off
    `Inversion.images` are the last step's pooled images: a whole part at 1024 px is gigabytes.

    Raises `ShapeError` if a tensor is not what the model takes, `ConfigError` for the rule's steps
    or the batch size.
    """
    images = of_shape("images", images, (None, 3, *model.input_size), model)
    check_steps(model, rule.most)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    first = start_codes(model, len(images), start)
    begun = start_beside(model, images, start, start_images)
    loop = _Loop(model, images, rule, first, begun, full_size)
    faces, waiting = loop.every.split(
        [min(batch_size, len(images)), max(0, len(images) - batch_size)]
    )
    while len(faces):
        going = faces[~loop.step(faces)]
        room = batch_size - len(going)
        faces, waiting = torch.cat([going, waiting[:room]]), waiting[room:]
    return loop.result(passes=start_renders(model, start, start_images))


class _Loop:
    """The state of all faces of a part; `step` moves some of them on by one step."""

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
        self.every = torch.arange(n, device=images.device)
        self.made = torch.zeros_like(self.every)
        self.stopped = torch.zeros_like(self.every, dtype=torch.bool)
        self.w_plus = images.new_empty(n, rule.most, model.n_styles, LATENT_DIM)
        self.step_images = images.new_empty(n, rule.most, *images.shape[1:])
        self.frames = images.new_empty(n, 3, *model.frame_size) if full_size else None

    def step(self, faces: Tensor) -> Tensor:
        """Move `faces` (int64 [k]) on by one step; which of them are done, bool [k]."""
        codes, beside = self._present(faces)
        targets = self.images[faces]
        frames = (
            None
            if self.frames is None
            else self.frames.new_empty(len(faces), *self.frames.shape[1:])
        )
        after, seen = restyle_step(self.model, targets, codes, beside, frames)
        self.w_plus[faces, self.made[faces]] = after
        self.step_images[faces, self.made[faces]] = seen
        self.made[faces] += 1
        done = self._done(faces, gain(targets, beside, seen), residual(codes, after))
        if self.frames is not None and frames is not None:
            self.frames[faces[done]] = frames[done]
        return done

    def _present(self, faces: Tensor) -> tuple[Tensor, Tensor | None]:
        """The codes of `faces` before their next step, and what the encoder sees beside them."""
        begun = self.made[faces] > 0
        last = (self.made[faces] - 1).clamp_min(0)
        codes = torch.where(begun[:, None, None], self.w_plus[faces, last], self.start[faces])
        if self.start_images is None:
            return codes, None
        seen, first = self.step_images[faces, last], self.start_images[faces]
        return codes, torch.where(begun[:, None, None, None], seen, first)

    def _done(self, faces: Tensor, gains: Tensor, residuals: Tensor) -> Tensor:
        made = self.made[faces]
        finite = gains.isnan().logical_or(residuals.isnan()).logical_not()
        self.stopped[faces] = self.rule.fires(gains, residuals, made)
        return self.stopped[faces] | (made >= self.rule.most) | ~finite

    def result(self, passes: int) -> Inversion:
        """What was found, `passes` generator passes before the first step added to each face's."""
        steps = int(self.made.max())
        for step in range(1, steps):
            late = self.made <= step
            self.w_plus[late, step] = self.w_plus[late, step - 1]
            self.step_images[late, step] = self.step_images[late, step - 1]
        seen = self.step_images[:, :steps]
        return Inversion(
            w_plus=self.w_plus[:, :steps],
            images=seen[:, -1] if self.frames is None else self.frames,
            step_images=seen,
            start=self.start,
            start_images=self.start_images,
            latent_avg=self.model.latent_avg,
            steps_made=self.made,
            generator_passes=self.made + passes,
            stopped=self.stopped,
        )
