"""Training scheme of e4e (arXiv 2102.02766): latent discriminator and progressive offsets.

Sec. 4.2: a small network discriminates rows of the encoder's codes from real w with the
non-saturating loss and lazy R1 regularisation (Mescheder et al. 2018).

Sec. 4.1: codes stay near W, where edits work; their rows get offsets one after another. Here this
constrains the residual of each step, and a sum of such residuals has the same structure.
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
    """Settings of the latent discriminator, as published for e4e."""

    weight: float = 0.1  # of the encoder's loss term
    lr: float = 2e-5
    r1: float = 10.0
    r1_every: int = 16  # batches between R1 penalties; each is multiplied by this number


class LatentDiscriminator(nn.Module):
    """MLP of four linear layers on single rows."""

    def __init__(self) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for _ in range(3):
            hidden += [nn.Linear(LATENT_DIM, LATENT_DIM), nn.LeakyReLU(0.2)]
        self.mlp = nn.Sequential(*hidden, nn.Linear(LATENT_DIM, 1))

    def forward(self, w: Tensor) -> Tensor:
        """Return logits [n] of `w` [n, 512]; higher means more likely real."""
        logits: Tensor = self.mlp(w)[:, 0]
        return logits


class DiscriminatorTraining:
    """Discriminator with its optimiser, and the non-saturating losses of both sides."""

    def __init__(
        self, network: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.network = network
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr, betas=betas)

    def penalty(self, fake: Tensor) -> Tensor:
        """Return the loss of the network that gave `fake` [n, ...], a scalar.

        Gradients reach only `fake`, not the discriminator.
        """
        self.network.requires_grad_(False)
        loss = F.softplus(-self.network(fake)).mean()
        self.network.requires_grad_(True)
        return loss

    def learn(self, fake: Tensor, real: Tensor, r1: float, group: Group) -> Tensor:
        """Make one step of the optimiser; return the loss without R1, whose weight is `r1`."""
        real = real.detach().requires_grad_(bool(r1))
        self.optimiser.zero_grad(set_to_none=True)
        logits = self.network(real)
        loss = F.softplus(-logits).mean() + F.softplus(self.network(fake.detach())).mean()
        total = loss + r1 / 2 * gradient_penalty(logits, real) if r1 else loss
        total.backward()
        group.average_gradients(self.network)
        self.optimiser.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return the state for the checkpoint."""
        return {
            "discriminator": self.network.state_dict(),
            "discriminator_optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; without a discriminator in it nothing changes."""
        if "discriminator" in state:
            self.network.load_state_dict(state["discriminator"])
            self.optimiser.load_state_dict(state["discriminator_optimiser"])


class Adversary(DiscriminatorTraining):
    """Latent discriminator, for one training of an encoder."""

    def __init__(
        self,
        plan: AdversaryPlan,
        real: Callable[[int], Tensor],  # n to n real codes [n, 512]
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(LatentDiscriminator().to(device), plan.lr)
        self.plan, self.real = plan, real

    def penalty(self, fake: Tensor) -> Tensor:
        """Return the encoder's loss of codes [n, rows, 512], a scalar."""
        return super().penalty(fake.flatten(0, 1))

    def step(self, codes: Tensor, batches: int, group: Group) -> dict[str, Tensor]:
        """Train the discriminator on `codes` [n, rows, 512]; return its loss, for the log."""
        fake = codes.flatten(0, 1)
        r1 = 0.0 if batches % self.plan.r1_every else self.plan.r1 * self.plan.r1_every
        return {"discriminator": self.learn(fake, self.real(len(fake)), r1, group)}

    def take_over(self, network: Mapping[str, Tensor], optimiser: Mapping[str, Any] | None) -> None:
        """Load the discriminator of an official training, and its Adam state if there is one.

        Raises `ModelError` when the optimiser's state belongs to another network.
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


def gradient_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """Return R1, the mean squared norm of the logits' gradient at `real` [n, ...], a scalar."""
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


@dataclass(frozen=True)
class Stages:
    """Schedule of the rows: the image from which each further row has its own offset."""

    start: int  # images with a single w
    every: int  # images for each row after that

    def at(self, images: int, n_styles: int) -> int:
        """Return the number of rows with an offset after `images`, 0 to n_styles - 1."""
        if images < self.start:
            return 0
        return min(n_styles - 1, 1 + (images - self.start) // self.every)


def staged(residual: Tensor, stage: int) -> Tensor:
    """Return `residual` [n, rows, 512] with the rows after `stage` replaced by its first row."""
    first, own = residual[:, :1], residual[:, : stage + 1]
    return torch.cat([own, first.expand(-1, residual.shape[1] - stage - 1, -1)], dim=1)


def late_heads(encoder: nn.Module) -> list[nn.Module]:
    """Return the heads of rows 1 and later of an encoder with one head per row, otherwise []."""
    heads = getattr(encoder, "styles", ())
    return list(heads)[1:]


def clear_gradients(heads: Iterable[nn.Module]) -> None:
    """Set the gradients of `heads` to None; they are 0 where `staged` drops the heads' output.

    An optimiser would count a gradient of 0 as a step and estimate the variance as 0.
    """
    for head in heads:
        for weight in head.parameters():
            weight.grad = None


def delta_norms(codes: Tensor, stage: int) -> Tensor:
    """Return the delta regularisation: the mean norm of each row's offset from row 0, summed.

    `codes` is [n, rows, 512]; the result is a scalar, 0 at stage 0 (e4e, eq. 2).
    """
    offsets = codes[:, 1 : stage + 1] - codes[:, :1]
    total: Tensor = torch.linalg.vector_norm(offsets, dim=2).mean(dim=0).sum()
    return total


def w_norm(codes: Tensor, latent_avg: Tensor) -> Tensor:
    """Return the mean distance of codes [n, rows, 512] from the average latent (pSp, eq. 4)."""
    mean: Tensor = torch.linalg.vector_norm((codes - latent_avg).flatten(1), dim=1).mean()
    return mean
