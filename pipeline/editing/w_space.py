"""Identity of a generator and of its W space, by which a direction is bound to its models.

Models of one W space give the same meaning to a code: encoders for one generator, and a generator
that was trained on from another with the same mapping and average latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models import RestyleModel  # PyTorch is slow to import

_HEX_DIGITS = 64


@dataclass(frozen=True)
class WSpace:
    """Model of a direction: `generator` and `w_space` are SHA-256, `model` its name for messages.

    Two models are compatible if either hash is the same. `w_space` covers the mapping network and,
    if it is not zero, the average latent.
    """

    model: str
    generator: str
    w_space: str

    def accepts(self, other: WSpace) -> bool:
        """Return whether codes of the two models have the same meaning."""
        return self.generator == other.generator or self.w_space == other.w_space

    @classmethod
    def from_dict(cls, document: Any, source: str) -> WSpace:
        """Return the record in `document`; `ConfigError`, naming `source`, for a damaged one."""
        if not isinstance(document, Mapping) or set(document) != set(cls.__dataclass_fields__):
            raise ConfigError(f"{source}: its record of a W space is damaged")
        values = {name: document[name] for name in cls.__dataclass_fields__}
        hashes = (values["generator"], values["w_space"])
        if not all(isinstance(value, str) for value in values.values()) or any(
            len(value) != _HEX_DIGITS for value in hashes
        ):
            raise ConfigError(f"{source}: its record of a W space is damaged")
        return cls(**values)


def w_space_of(model: RestyleModel) -> WSpace:
    """Return the record of a model's generator and W space; reads the generator's weights."""
    from pipeline.models.model import digest_of

    generator = digest_of(model.generator.state_dict())
    shared = {
        name: tensor
        for name, tensor in model.generator.state_dict().items()
        if name.startswith("style.")
    }
    average = model.latent_avg[0].float()
    if average.any():
        shared["latent_avg"] = average
    return WSpace(model.name, generator, digest_of(shared) if shared else generator)
