"""Domains of the published models: presets, and how a job treats a model's images.

The domain comes from the user, from a checkpoint's options (`dataset_type`, else the generator's
file name) or from a bundle's record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.choices import Fit
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models.model import RestyleModel  # PyTorch is slow to import

UNKNOWN = "unknown"
OWN_DOMAIN = "image_domain"  # an option of checkpoints that this project writes


@dataclass(frozen=True)
class Preset:
    """Properties of every model of one domain.

    `has_faces` is None if unknown. `encoder_type` is the ReStyle-pSp encoder published for the
    domain, `input_size` its (height, width).
    """

    domain: str
    has_faces: bool | None = False
    encoder_type: str = "ResNetBackboneEncoder"
    input_size: tuple[int, int] = (256, 256)
    fit: Fit = "stretch"

    def identity(self, prealigned: bool) -> str:
        """Return the default identity network.

        If `has_faces` is unknown, images that are aligned (not `prealigned`) count as faces.
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

# Words in the names of data sets and generators, in order of priority: a cartoon generator is
# fine-tuned from FFHQ's, and its published name has both words.
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
# Words that name a domain only if no other word contradicts: a data set of birds has faces too.
_AMBIGUOUS = {"face", "faces", "wild"}
_NEUTRAL = {
    *("", "encode", "inversion", "frontalize", "super", "resolution", "afhq", "config", "f", "px"),
    *("data", "dataset", "images", "photo", "photos", "aligned", "custom", "my", "human", "real"),
    *("hq", "stylegan", "ada", "generator", "network", "snapshot", "pkl", "pt", "pth"),
}
# Drawings are not photos of faces, even if the generator was fine-tuned from FFHQ's.
_DRAWN = {
    *("anime", "animes", "manga", "comic", "comics", "drawing", "drawings", "drawn", "painting"),
    *("paintings", "sketches", "art", "arts", "artworks", "caricature", "caricatures", "pixelart"),
    *("waifu", "danbooru", "webtoon", "emoji", "emojis", "pokemon", "ukiyo", "ukiyoe"),
}


def named_domain(name: str) -> str | None:
    """Return the domain in the name of a data set or file: `faces` for `ffhq_encode`.

    None for a name without a names domain, such as `anime_face_encode` and `my_data_encode`.
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    domain = next((domain for domain, names in _WORDS.items() if words & set(names)), None)
    if domain != "toonify" and words & _DRAWN:
        return None
    if domain == "afhq_wild" and words & {"face", "faces"}:
        return None
    specific = words & set(_WORDS[domain]) - _AMBIGUOUS if domain else set()
    return domain if specific or words <= _AMBIGUOUS | _NEUTRAL else None


def domain_of(options: Mapping[str, Any]) -> str:
    """Return the domain in an official checkpoint's options, else `unknown`.

    The data set's name has priority over the generator's file name, which is not used for a data
    set of drawings. Checkpoints written by this project name other domains as `image_domain`.
    """
    own = options.get(OWN_DOMAIN)
    if isinstance(own, str) and own:
        return own
    dataset = str(options.get("dataset_type") or "")
    named, rendered = named_domain(dataset), named_domain(generator_name(options))
    if rendered == "toonify" and named in {None, "faces"}:
        return rendered
    drawn = _DRAWN & set(re.split(r"[^a-z]+", dataset.lower()))
    return named or (None if drawn else rendered) or UNKNOWN


def domain_note(options: Mapping[str, Any]) -> str | None:
    """Return how the domain was guessed, or why it could not be.

    None if the options name it.
    """
    dataset, generator = str(options.get("dataset_type") or ""), generator_name(options)
    if named_domain(dataset) or options.get(OWN_DOMAIN):
        return None
    names = [
        f"{what} '{name}'"
        for what, name in (("the data set", dataset), ("the generator", generator))
        if name
    ]
    if domain_of(options) == UNKNOWN:
        return f"no known domain in the name of {' and '.join(names)}" if names else None
    return f"by the name of the generator, '{generator}'"


def generator_name(options: Mapping[str, Any]) -> str:
    """Return the file name of the generator that a checkpoint was trained with, else ""."""
    return re.split(r"[/\\]", str(options.get("stylegan_weights") or ""))[-1]


def preset_of(domain: str) -> Preset:
    """Return the preset of a domain; for an unpublished domain one whose `has_faces` is None."""
    return PRESETS.get(domain, Preset(domain, None))


@dataclass(frozen=True)
class Treatment:
    """Handling of the images of one model by a job, with a one-line `description`."""

    prealigned: bool  # images are used without face detection and alignment
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
    """Return the treatment of a model's images: the given settings, else its preset's.

    None means not given. Images of a domain without a preset are not aligned. Raises `ConfigError`
    if face alignment is given for a domain without faces, or if nothing says whether a model's
    images have faces.
    """
    preset = preset_of(model.domain)
    if model.domain == UNKNOWN and prealigned is None:
        reason = model.card.notes.get("domain")
        domains = ", ".join(name for name in PRESETS if name not in ("faces", UNKNOWN))
        raise ConfigError(
            f"unknown domain of the model '{model.name}'"
            f"{f' ({reason})' if reason else ''}: add --domain faces (or {domains}), "
            "--prealigned to use images without alignment, or --no-prealigned to align faces; "
            "jobs/convert_model.py --domain stores it in a bundle"
        )
    if preset.has_faces is False and prealigned is False:
        raise ConfigError(
            f"the model '{model.name}' inverts images of {model.domain}, which have no faces to "
            "align: leave out --no-prealigned"
        )
    as_they_are = not preset.has_faces if prealigned is None else prealigned
    chosen = identity or preset.identity(as_they_are)
    resized = fit or preset.fit
    guessed = prealigned is None and preset.has_faces is None
    description = _described(model, as_they_are, chosen, resized, guessed=guessed)
    return Treatment(as_they_are, chosen, resized, description)


def _described(
    model: RestyleModel, prealigned: bool, identity: str, fit: Fit, *, guessed: bool
) -> str:
    height, width = model.input_size
    rows, columns = model.frame_size
    source = "each image resized" if fit == "stretch" else f"each image resized ({fit})"
    images = f"no face alignment, {source}" if prealigned else "faces aligned as FFHQ's, cropped"
    if guessed:
        images = f"assumed to have no faces (--domain faces aligns them), {source}"
    measured = "no identity metric" if identity == "none" else f"identity metric {identity}"
    notes = "".join(
        f"; {text.format(model.card.notes[name])}"
        for name, text in _NOTES.items()
        if name in model.card.notes
    )
    encoder = "generator alone" if model.generator_alone else model.architecture.encoder_type
    return (
        f"{model.domain} model '{model.name}' ({encoder}): "
        f"{images} to {height}x{width}, frames of {rows}x{columns}, {measured}{notes}"
    )


# Notes in a model's card that end its description.
_NOTES = {
    "domain": "domain: {}",
    "ignored": "its file: {}",
    "latent_avg": "average latent: {}",
}
