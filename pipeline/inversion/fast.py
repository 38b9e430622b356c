"""Twin of a model for fast inversion: same code path, fast networks, CUDA graphs.

`invert` and `invert_adaptively` take it like a model. In float32 it differs by rounding. In
bfloat16 the means of a set's L2, LPIPS and identity move by a few hundredths of a percent, single
faces by more: `README.md` beside this file has the measured bounds.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.inversion.graphs import GraphedStep
from pipeline.models.encoders_fast import fast_encoder
from pipeline.models.model import RestyleModel
from pipeline.models.stylegan2_fast import MOST_AT_ONCE, FastGenerator


class FastModel(RestyleModel):
    """Twin of a model's present weights, on the device of the model.

    It inverts and renders, but has no gradients: `optimize` and training take the model itself. In
    float32, which is for CPUs, it shares the model's encoder: a twin of that is not faster.
    """

    def __init__(self, model: RestyleModel, dtype: torch.dtype = torch.bfloat16) -> None:
        nn.Module.__init__(self)
        self.architecture, self.card = model.architecture, model.card
        is_float32 = dtype == torch.float32
        self.encoder = model.encoder if is_float32 else fast_encoder(model.encoder, dtype)
        twin = FastGenerator(model.generator, model.frame_size, model.input_size, dtype)
        self.generator = cast("Any", twin)
        self.register_buffer("latent_avg", model.latent_avg.detach().clone())
        self._graphed: GraphedStep | None = None
        self.eval()

    @property
    def fingerprint(self) -> str:
        """Raise `ModelError`: results are those of the model, whose fingerprint identifies them."""
        raise ModelError("a fast twin has no fingerprint of its own: take that of its model")

    def pooled(self, codes: Tensor) -> Tensor:
        """Render codes [n, n_styles, 512] and average to float32 [n, 3, *input_size]."""
        return cast("FastGenerator", self.generator).pooled(codes)

    def step(
        self, images: Tensor, codes: Tensor, reconstruction: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return codes and pooled images after one residual step, as `restyle_step` does.

        On a GPU as a CUDA graph.
        """
        if self._graphed is None and images.device.type == "cuda":
            self._graphed = GraphedStep(self._step, MOST_AT_ONCE)
        return (self._graphed or self._step)(images, codes, reconstruction)

    def _step(
        self, images: Tensor, codes: Tensor, reconstruction: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inputs = images if reconstruction is None else torch.cat([images, reconstruction], dim=1)
        residuals = [self.encoder(batch) for batch in inputs.split(MOST_AT_ONCE)]
        refined = codes + torch.cat(residuals)
        return refined, self.pooled(refined)

    def __repr__(self) -> str:
        """Return one line: name, domain, output size."""
        return f"FastModel('{self.name}', {self.domain}, {self.generator_size} px)"
