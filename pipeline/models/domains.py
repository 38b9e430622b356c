"""What the published models of each domain are made for, and how their images are to be treated.

The domain comes from the user, from a checkpoint's own options (`dataset_type`, else the
generator's file name) or from a bundle's record. Everything that a job asks a user about a domain
has its answer here.
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
    """What holds for every model of one domain.

    Where `has_faces` is None it is not known. `encoder_type` is the ReStyle-pSp encoder published
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
# Words that tell a domain only where no other word says something else: a bird has a face too.
_VAGUE = {"face", "faces", "wild"}
_NEUTRAL = {
    *("", "encode", "inversion", "frontalize", "super", "resolution", "afhq", "config", "f", "px"),
    *("data", "dataset", "images", "photo", "photos", "aligned", "custom", "my", "human", "real"),
    *("hq", "stylegan", "ada", "generator", "network", "snapshot", "pkl", "pt", "pth"),
}
# What is drawn is no photo of a face, whatever the generator was begun with.
_DRAWN = {
    *("anime", "animes", "manga", "comic", "comics", "drawing", "drawings", "drawn", "painting"),
    *("paintings", "sketches", "art", "arts", "artworks", "caricature", "caricatures", "pixelart"),
    *("waifu", "danbooru", "webtoon", "emoji", "emojis", "pokemon", "ukiyo", "ukiyoe"),
}


def named_domain(name: str) -> str | None:
    """Return the domain that a data set or a file is named after: `ffhq_encode` is faces.

    None where the name does not tell, as with `anime_face_encode` and `my_data_encode`.
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    domain = next((domain for domain, known in _WORDS.items() if words & set(known)), None)
    if domain != "toonify" and words & _DRAWN:
        return None
    if domain == "afhq_wild" and words & {"face", "faces"}:
        return None
    telling = words & set(_WORDS[domain]) - _VAGUE if domain else set()
    return domain if telling or words <= _VAGUE | _NEUTRAL else None


def domain_of(options: Mapping[str, Any]) -> str:
    """Return the domain that an official checkpoint's options tell, else `unknown`.

    The data set's name counts first and the generator's file name next, but not for a data set of
    drawings. A checkpoint that this project wrote names any other domain as `image_domain`.
    """
    own = options.get(OWN_DOMAIN)
    if isinstance(own, str) and own:
        return own
    dataset = str(options.get("dataset_type") or "")
    told, rendered = named_domain(dataset), named_domain(generator_name(options))
    if rendered == "toonify" and told in {None, "faces"}:
        return rendered
    drawn = _DRAWN & set(re.split(r"[^a-z]+", dataset.lower()))
    return told or (None if drawn else rendered) or UNKNOWN


def domain_note(options: Mapping[str, Any]) -> str | None:
    """Return how the domain was guessed, or why it could not be; None where the data set tells."""
    dataset, generator = str(options.get("dataset_type") or ""), generator_name(options)
    if named_domain(dataset) or options.get(OWN_DOMAIN):
        return None
    names = [
        f"{what} '{name}'"
        for what, name in (("the data set", dataset), ("the generator", generator))
        if name
    ]
    if domain_of(options) == UNKNOWN:
        return f"no domain is known by the name of {' and '.join(names)}" if names else None
    return f"by the name of the generator, '{generator}'"


def generator_name(options: Mapping[str, Any]) -> str:
    """Return the file name of the generator that a checkpoint was trained with, else ""."""
    return re.split(r"[/\\]", str(options.get("stylegan_weights") or ""))[-1]


def preset_of(domain: str) -> Preset:
    """Return the preset of a domain; whether one without published models has faces is unknown."""
    return PRESETS.get(domain, Preset(domain, None))


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

    Images of a domain that is not among the presets are taken as they are. Raises `ConfigError`
    where faces are to be aligned for a model of something else, or where nothing tells whether a
    model's images have faces.
    """
    preset = preset_for(model)
    if model.domain == UNKNOWN and prealigned is None:
        reason = model.card.notes.get("domain")
        known = ", ".join(name for name in PRESETS if name not in ("faces", UNKNOWN))
        raise ConfigError(
            f"nothing tells what the images of the model '{model.name}' show"
            f"{f' ({reason})' if reason else ''}: add --domain faces (or {known}), "
            "--prealigned to take them as they are, or --no-prealigned to align faces; "
            "jobs/convert_model.py --domain says it once for all"
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
    images = f"no face alignment, {source}" if prealigned else "faces aligned as FFHQ's, cut"
    if guessed:
        images = f"taken for images without faces (--domain faces aligns them), {source}"
    measured = "no identity metric" if identity == "none" else f"identity metric {identity}"
    told = "".join(
        f"; {text.format(model.card.notes[name])}"
        for name, text in _TOLD.items()
        if name in model.card.notes
    )
    encoder = "generator alone" if model.generator_alone else model.architecture.encoder_type
    return (
        f"{model.domain} model '{model.name}' ({encoder}): "
        f"{images} to {height}x{width}, frames of {rows}x{columns}, {measured}{told}"
    )


# What the reading of a model's file noted, as the line about the model ends.
_TOLD = {
    "domain": "domain: {}",
    "ignored": "its file: {}",
    "latent_avg": "average latent: {}",
}
