"""Training scheme of e4e (arXiv 2102.02766): latent discriminator and progressive offsets.

Tov et al. 2021 (arXiv 2102.02766), sec. 4.2: a small network tells rows of the encoder's codes from
real w, by the non-saturating loss, with R1 now and then (Mescheder et al. 2018).

Tov et al. 2021 (arXiv 2102.02766), sec. 4.1: codes stay near W, where edits work, and leave it row
by row. Here what a step adds is held to that; sums of such steps are such codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models.stylegan2 import LATENT_DIM
from pipeline.training.distributed import Group


@dataclass(frozen=True)
class AdversaryPlan:
    """The published settings of e4e."""

    weight: float = 0.1  # of the encoder's term
    rate: float = 2e-5
    r1: float = 10.0
    r1_every: int = 16  # batches; the penalty counts so many times more when it is taken


class LatentDiscriminator(nn.Module):
    """Four linear layers over single rows."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for _ in range(layers - 1):
            hidden += [nn.Linear(LATENT_DIM, LATENT_DIM), nn.LeakyReLU(0.2)]
        self.mlp = nn.Sequential(*hidden, nn.Linear(LATENT_DIM, 1))

    def forward(self, w: Tensor) -> Tensor:
        """How real each of `w` [n, 512] looks, logits [n]."""
        logits: Tensor = self.mlp(w)[:, 0]
        return logits


class Adversary:
    """The discriminator, its optimiser, and both sides' losses."""

    def __init__(
        self,
        plan: AdversaryPlan,
        real: Callable[[int], Tensor],  # n to so many real codes [n, 512]
        device: torch.device | str = "cpu",
    ) -> None:
        self.plan, self.real = plan, real
        self.network = LatentDiscriminator().to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=plan.rate)

    def penalty(self, codes: Tensor) -> Tensor:
        """The encoder's term, a scalar: rows of `codes` [n, rows, 512] that do not look real.

        Gradients go to the codes alone.
        """
        self.network.requires_grad_(False)
        loss = F.softplus(-self.network(codes.flatten(0, 1))).mean()
        self.network.requires_grad_(True)
        return loss

    def learn(self, codes: Tensor, batches: int, group: Group) -> dict[str, Tensor]:
        """One step of the discriminator on `codes` [n, rows, 512]; what it lost, for the log."""
        fake = codes.detach().flatten(0, 1)
        real = self.real(len(fake)).requires_grad_()
        penalised = batches % self.plan.r1_every == 0
        self.optimiser.zero_grad(set_to_none=True)
        judged = self.network(real)
        lost = F.softplus(-judged).mean() + F.softplus(self.network(fake)).mean()
        loss = lost
        if penalised:
            loss = lost + self.plan.r1 / 2 * self.plan.r1_every * gradient_penalty(judged, real)
        loss.backward()
        group.average_gradients(self.network)
        self.optimiser.step()
        return {"discriminator": lost.detach()}

    def take_over(self, network: Mapping[str, Tensor], optimiser: Mapping[str, Any] | None) -> None:
        """Go on with a discriminator of an official training, and with its Adam where it is there.

        Raises `ModelError` where the optimiser's state is that of another network.
        """
        self.network.load_state_dict(network)
        if optimiser is None:
            return
        try:
            self.optimiser.load_state_dict(dict(optimiser))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the official file's discriminator_optimizer_state_dict does not fit ({error})"
            ) from error

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "discriminator": self.network.state_dict(),
            "discriminator_optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; a state without a discriminator leaves it new."""
        if "discriminator" in state:
            self.network.load_state_dict(state["discriminator"])
            self.optimiser.load_state_dict(state["discriminator_optimiser"])


def gradient_penalty(judged: Tensor, real: Tensor) -> Tensor:
    """R1: the mean squared length of the logits' gradient at the real codes, a scalar."""
    (gradient,) = torch.autograd.grad(judged.sum(), real, create_graph=True)
    return gradient.square().sum(dim=1).mean()


@dataclass(frozen=True)
class Stages:
    """From which image on each further row has an offset of its own."""

    start: int  # images with a single w
    every: int  # images for each row after that

    def at(self, images: int, n_styles: int) -> int:
        """How many rows have an offset after `images`, 0 to n_styles - 1."""
        if images < self.start:
            return 0
        return min(n_styles - 1, 1 + (images - self.start) // self.every)


def staged(residual: Tensor, stage: int) -> Tensor:
    """`residual` [n, rows, 512] whose rows after `stage` are its first row."""
    first, own = residual[:, :1], residual[:, : stage + 1]
    return torch.cat([own, first.expand(-1, residual.shape[1] - stage - 1, -1)], dim=1)


def late_heads(encoder: nn.Module) -> list[nn.Module]:
    """The heads behind rows 1 and on, of an encoder that has one a row; else none."""
    heads = getattr(encoder, "styles", ())
    return list(heads)[1:]


def leave_out(heads: Iterable[nn.Module]) -> None:
    """Take the gradients of `heads` away, which are 0 where `staged` drops what they give.

    To an optimiser a gradient of 0 is a step: it would count these, and hold the variance for 0.
    """
    for head in heads:
        for weight in head.parameters():
            weight.grad = None


def delta_norms(codes: Tensor, stage: int) -> Tensor:
    """Delta regularisation: the mean length of each row's offset from row 0, added over the rows.

    `codes` [n, rows, 512]; a scalar, 0 at stage 0 (e4e, eq. 2).
    """
    offsets = codes[:, 1 : stage + 1] - codes[:, :1]
    total: Tensor = torch.linalg.vector_norm(offsets, dim=2).mean(dim=0).sum()
    return total


def w_norm(codes: Tensor, latent_avg: Tensor) -> Tensor:
    """Mean distance of codes [n, rows, 512] from the average (pSp, eq. 4)."""
    mean: Tensor = torch.linalg.vector_norm((codes - latent_avg).flatten(1), dim=1).mean()
    return mean
