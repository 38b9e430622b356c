"""Every published domain is recognised and treated as its transforms do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import PRESETS, load_checkpoint, preset_for, preset_of, treatment_for
from pipeline.models.domains import domain_of
from pipeline.models.official import official_checkpoint
from tests.models.tiny import tiny_checkpoint

PUBLISHED = {
    "ffhq_encode": "faces",
    "celeba_encode": "faces",
    "ffhq_frontalize": "faces",
    "celebs_super_resolution": "faces",
    "toonify": "toonify",
    "cars_encode": "cars",
    "church_encode": "church",
    "horse_encode": "horse",
    "afhq_wild_encode": "afhq_wild",
    "afhq_cat_encode": "afhq_cat",
    "cats_encode": "afhq_cat",
    "afhq_dog_encode": "afhq_dog",
}


def model(dataset_type: str | None, **options: Any) -> Any:
    """A small ReStyle model whose options name a data set."""
    made = tiny_checkpoint("ResNetBackboneEncoder", dataset_type=dataset_type, **options)
    return load_checkpoint(made, source="official.pt")


@pytest.mark.parametrize(("dataset", "domain"), PUBLISHED.items())
def test_a_published_data_set_names_its_domain(dataset: str, domain: str) -> None:
    assert domain_of({"dataset_type": dataset}) == domain
    assert domain in PRESETS


@pytest.mark.parametrize(
    ("generator", "domain"),
    [
        ("pretrained_models/stylegan2-ffhq-config-f.pt", "faces"),
        ("C:\\weights\\stylegan2-car-config-f.pt", "cars"),
        ("/ffhq/afhqwild.pt", "afhq_wild"),
        ("stylegan2-church-config-f.pt", "church"),
        ("x.pt", "unknown"),
        (None, "unknown"),
    ],
)
def test_without_a_data_set_the_generators_name_tells(generator: str, domain: str) -> None:
    assert domain_of({"stylegan_weights": generator}) == domain


def test_a_cartoon_generator_makes_a_face_model_toonify() -> None:
    options = {"dataset_type": "ffhq_encode", "stylegan_weights": "ffhq_cartoon_blended.pt"}
    assert domain_of(options) == "toonify"


UNKNOWN_NAMES = [
    *("my_data_encode", "metfaces", "portrait", "people", "humanface", "bedroom_encode"),
    *("bird_faces_encode", "faces_in_the_wild", "face_wild"),
]


@pytest.mark.parametrize("dataset", UNKNOWN_NAMES)
def test_an_unknown_data_set_leaves_it_to_the_generator(dataset: str) -> None:
    options = {"dataset_type": dataset, "stylegan_weights": "m/stylegan2-ffhq-config-f.pt"}
    assert domain_of({"dataset_type": dataset}) == "unknown"
    assert domain_of(options) == "faces"
    faces = treatment_for(model(dataset, stylegan_weights=options["stylegan_weights"]))
    assert (faces.prealigned, faces.identity) == (False, "dlib")
    assert "domain: by the name of the generator, 'stylegan2-ffhq-config-f.pt'" in faces.description


def test_drawn_faces_are_never_taken_for_photos() -> None:
    options = {"dataset_type": "anime_face_encode", "stylegan_weights": "ffhq.pt"}
    assert domain_of(options) == "unknown"
    assert domain_of({"stylegan_weights": "anime-faces.pt"}) == "unknown"
    with pytest.raises(ConfigError, match=r"the data set 'anime_face_encode' and the generator"):
        treatment_for(model(**options))


def test_one_line_asks_for_the_domain_of_an_unknown_name() -> None:
    with pytest.raises(
        ConfigError, match=r"\(no domain is known by .* 'my_data_encode'\): add --domain faces"
    ):
        treatment_for(model("my_data_encode"))
    named = load_checkpoint(tiny_checkpoint(dataset_type="my_data_encode"), domain="faces")
    assert treatment_for(named).prealigned is False


def test_a_word_of_the_users_own_is_no_fact_about_faces() -> None:
    own = load_checkpoint(tiny_checkpoint(dataset_type="bedroom_encode"), domain="bedroom")
    assert preset_of("bedroom").has_faces is None
    found = treatment_for(own)
    assert (found.prealigned, found.identity) == (True, "none")
    assert "taken for images without faces (--domain faces aligns them)" in found.description
    assert treatment_for(own, prealigned=False).identity == "dlib"
    again = load_checkpoint(official_checkpoint(own))
    assert again.domain == "bedroom"


def test_every_published_layout_has_the_preset_that_it_was_trained_with(shared: Path) -> None:
    found = 0
    for path in (shared / "reference" / "layouts").glob("layout_*.json"):
        record = json.loads(path.read_text())
        if "opts" not in record:
            continue
        preset = preset_of(domain_of(record["opts"]))
        found += 1
        assert preset.domain in PRESETS
        assert preset.domain != "unknown"
        assert record["encoder_type"].startswith("ResNet") is (preset.has_faces is False)
    assert found >= 10


def test_faces_are_aligned_and_their_identity_is_measured() -> None:
    faces = treatment_for(model("ffhq_encode"))
    assert (faces.prealigned, faces.identity, faces.fit) == (False, "dlib", "stretch")


@pytest.mark.parametrize("domain", ["cars", "church", "horse", "afhq_wild"])
def test_where_there_are_no_faces_none_is_aligned_or_recognised(domain: str) -> None:
    found = treatment_for(model(f"{domain}_encode"))
    assert (found.prealigned, found.identity) == (True, "none")


def test_the_treatment_says_itself_in_one_line() -> None:
    cars = treatment_for(model("cars_encode")).description
    assert cars == (
        "cars model 'official.pt' (ResNetBackboneEncoder): no face alignment, each image resized "
        "to 192x256, frames of 6x8, no identity metric"
    )
    faces = treatment_for(model("ffhq_encode"), identity="curricular.pth").description
    assert "faces aligned as FFHQ's, cut to 256x256" in faces
    assert faces.endswith("identity metric curricular.pth")


def test_what_is_asked_for_wins_over_the_preset() -> None:
    found = treatment_for(model("cars_encode"), identity="moco.pth", fit="crop")
    assert (found.prealigned, found.identity, found.fit) == (True, "moco.pth", "crop")
    assert treatment_for(model("ffhq_encode"), prealigned=True).prealigned


def test_faces_are_not_aligned_for_a_model_of_cars() -> None:
    with pytest.raises(ConfigError, match="images of cars, which have no faces to align"):
        treatment_for(model("cars_encode"), prealigned=False)


def test_a_model_of_nobody_knows_what_asks_once() -> None:
    unknown = model(None)
    assert preset_for(unknown).has_faces is None
    with pytest.raises(ConfigError, match=r"--prealigned .* or --no-prealigned"):
        treatment_for(unknown)
    assert treatment_for(unknown, prealigned=False).identity == "dlib"
    assert treatment_for(unknown, prealigned=True).identity == "none"
    assert treatment_for(unknown, prealigned=True, identity="dlib").identity == "dlib"
