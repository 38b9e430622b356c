"""What the published models of each domain are made for, and how their images are to be treated.

The domain comes from a checkpoint's own options (`dataset_type`, else the generator's file name)
or from a bundle's record. Everything that a job asks a user about a domain has its answer here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.choices import Fit
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models.restyle import RestyleModel  # PyTorch is slow to import

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Preset:
    """What holds for every model of one domain.

    Where `has_faces` is None nobody can tell. `encoder_type` is the ReStyle-pSp encoder published
    for the domain, `input_size` its (height, width).
    """

    domain: str
    has_faces: bool | None = False
    encoder_type: str = "ResNetBackboneEncoder"
    input_size: tuple[int, int] = (256, 256)
    fit: Fit = "stretch"

    def identity(self, prealigned: bool) -> str:
        """The identity network that is measured with by default.

        That of faces where nobody can tell and faces are looked for (not `prealigned`).
        """
        faces = not prealigned if self.has_faces is None else self.has_faces
        return "dlib" if faces else "none"


_ALL = (
    Preset("faces", True, "BackboneEncoder"),
    Preset("toonify", True, "BackboneEncoder"),
    Preset("cars", input_size=(192, 256)),
    Preset("church"),
    Preset("horse"),
    Preset("afhq_cat"),
    Preset("afhq_dog"),
    Preset("afhq_wild"),
    Preset(UNKNOWN, None),
)
PRESETS: dict[str, Preset] = {preset.domain: preset for preset in _ALL}

# Words of a data set's or a generator's name, the telling ones first: a cartoon generator is one
# that began as FFHQ's, and the published names have both words.
_WORDS = {
    "toonify": ("toonify", "toon", "cartoon"),
    "cars": ("cars", "car"),
    "church": ("church", "churches"),
    "horse": ("horse", "horses"),
    "afhq_wild": ("wild", "afhqwild"),
    "afhq_cat": ("cat", "cats", "afhqcat"),
    "afhq_dog": ("dog", "dogs", "afhqdog"),
    "faces": ("ffhq", "celebs", "celeba", "celebahq", "face", "faces"),
}


def named_domain(name: str) -> str | None:
    """The domain that a data set or a file is named after: `ffhq_encode` is faces."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((domain for domain, known in _WORDS.items() if words & set(known)), None)


def domain_of(options: Mapping[str, Any]) -> str:
    """The domain that an official checkpoint's options tell, `unknown` where they tell none.

    A data set of another name is its own domain: `bedroom_encode` is `bedroom`.
    """
    generator = re.split(r"[/\\]", str(options.get("stylegan_weights") or ""))[-1]
    dataset = str(options.get("dataset_type") or "")
    told, rendered = named_domain(dataset), named_domain(generator)
    if rendered == "toonify" and told in {None, "faces"}:
        return rendered
    own = re.sub(r"_(encode|inversion)$", "", dataset)
    return told or own or rendered or UNKNOWN


def preset_of(domain: str) -> Preset:
    """The preset of a domain; one that has no published models is taken for free of faces."""
    return PRESETS.get(domain, Preset(domain))


def preset_for(model: RestyleModel) -> Preset:
    """The preset of a model's domain."""
    return preset_of(model.domain)


@dataclass(frozen=True)
class Treatment:
    """How a job treats the images of one model; `description` says it in one line."""

    prealigned: bool  # images are taken as they are: no face is looked for
    identity: str  # `dlib`, `none`, or a weight file
    fit: Fit  # how a prealigned image becomes the encoder's input
    description: str


def treatment_for(
    model: RestyleModel,
    *,
    prealigned: bool | None = None,
    identity: str | None = None,
    fit: Fit | None = None,
) -> Treatment:
    """What is asked for, and where nothing is (None) what the model's preset says.

    Raises `ConfigError` where faces are to be aligned for a model of something else, or where
    nothing tells whether a model's images have faces.
    """
    preset = preset_for(model)
    if preset.has_faces is None and prealigned is None:
        raise ConfigError(
            f"nothing tells what the images of the model '{model.name}' show: add --prealigned to "
            "take them as they are or --no-prealigned to align faces, or convert the model once "
            "with jobs/convert_model.py --domain"
        )
    if preset.has_faces is False and prealigned is False:
        raise ConfigError(
            f"the model '{model.name}' inverts images of {model.domain}, which have no faces to "
            "align: leave out --no-prealigned"
        )
    as_they_are = not preset.has_faces if prealigned is None else prealigned
    chosen = identity or preset.identity(as_they_are)
    resized = fit or preset.fit
    return Treatment(as_they_are, chosen, resized, _described(model, as_they_are, chosen, resized))


def _described(model: RestyleModel, prealigned: bool, identity: str, fit: Fit) -> str:
    height, width = model.input_size
    rows, columns = model.frame_size
    source = "each image resized" if fit == "stretch" else f"each image resized ({fit})"
    images = f"no face alignment, {source}" if prealigned else "faces aligned as FFHQ's, cut"
    measured = "no identity metric" if identity == "none" else f"identity metric {identity}"
    return (
        f"{model.domain} model '{model.name}' ({model.architecture.encoder_type}): "
        f"{images} to {height}x{width}, frames of {rows}x{columns}, {measured}"
    )
