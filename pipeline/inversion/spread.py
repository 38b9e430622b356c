"""How far W codes lie from their average: the unit of noise, rate and distance in optimisation."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from pipeline.errors import ConfigError
from pipeline.inversion.rendering import Version, version_of
from pipeline.models.restyle import RestyleModel
from pipeline.models.stylegan2 import LATENT_DIM

DRAWS, SEED = 4096, 2020
# In the FFHQ generator a code is 8.1 from the average on average, and the average 4.1 from 0.
SPREAD_OF_AVERAGE = 2.0

_spreads: WeakKeyDictionary[RestyleModel, tuple[Version, float]] = WeakKeyDictionary()


@torch.no_grad()
def latent_spread(model: RestyleModel) -> float:
    """Root mean square of one of a W code's 512 numbers around the average latent.

    From seeded Z codes where the generator carries its mapping network, as official checkpoints
    do (StyleGAN2's projector, whose figure is √512 times this). Without one it is estimated as
    twice the RMS of the average latent. Raises `ConfigError` where that is 0 too.
    """
    version = version_of(model)
    known = _spreads.get(model)
    if known is not None and known[0] == version:
        return known[1]
    spread = _measured(model) if model.architecture.mapping_layers else _guess(model)
    if not 0 < spread < float("inf"):
        raise ConfigError(
            f"model '{model.name}' does not tell how far its codes spread: set spread to the "
            "standard deviation of a W code's numbers (0.36 for FFHQ)"
        )
    if version is not None:
        _spreads[model] = (version, spread)
    return spread


def _measured(model: RestyleModel) -> float:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(DRAWS, LATENT_DIM, generator=generator).to(model.latent_avg.device)
    w = model.generator.map_z(z)
    return float((w - w.mean(dim=0)).square().mean().sqrt())


def _guess(model: RestyleModel) -> float:
    return SPREAD_OF_AVERAGE * float(model.latent_avg.square().mean().sqrt())
