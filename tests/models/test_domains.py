"""Published domains are recognised and treated as in their original transforms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models import PRESETS, load_checkpoint, preset_of, treatment_for
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
    """Return a small model whose options name a data set."""
    model = tiny_checkpoint("ResNetBackboneEncoder", dataset_type=dataset_type, **options)
    return load_checkpoint(model, source="official.pt")


@pytest.mark.parametrize(("dataset", "domain"), PUBLISHED.items())
def test_published_data_set_names_its_domain(dataset: str, domain: str) -> None:
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
def test_generator_name_is_used_without_a_data_set(generator: str, domain: str) -> None:
    assert domain_of({"stylegan_weights": generator}) == domain


def test_a_cartoon_generator_makes_a_face_model_toonify() -> None:
    options = {"dataset_type": "ffhq_encode", "stylegan_weights": "ffhq_cartoon_blended.pt"}
    assert domain_of(options) == "toonify"


UNKNOWN_NAMES = [
    *("my_data_encode", "metfaces", "portrait", "people", "humanface", "bedroom_encode"),
    *("bird_faces_encode", "faces_in_the_wild", "face_wild"),
]


@pytest.mark.parametrize("dataset", UNKNOWN_NAMES)
def test_generator_name_is_used_for_unknown_data_sets(dataset: str) -> None:
    options = {"dataset_type": dataset, "stylegan_weights": "m/stylegan2-ffhq-config-f.pt"}
    assert domain_of({"dataset_type": dataset}) == "unknown"
    assert domain_of(options) == "faces"
    faces = treatment_for(model(dataset, stylegan_weights=options["stylegan_weights"]))
    assert (faces.prealigned, faces.identity) == (False, "dlib")
    assert "domain: by the name of the generator, 'stylegan2-ffhq-config-f.pt'" in faces.description


def test_drawn_faces_are_never_treated_as_photos() -> None:
    options = {"dataset_type": "anime_face_encode", "stylegan_weights": "ffhq.pt"}
    assert domain_of(options) == "unknown"
    assert domain_of({"stylegan_weights": "anime-faces.pt"}) == "unknown"
    with pytest.raises(ConfigError, match=r"the data set 'anime_face_encode' and the generator"):
        treatment_for(model(**options))


def test_an_unknown_domain_is_asked_for_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"\(no known domain in .* 'my_data_encode'\): add --domain faces"
    ):
        treatment_for(model("my_data_encode"))
    named = load_checkpoint(tiny_checkpoint(dataset_type="my_data_encode"), domain="faces")
    assert treatment_for(named).prealigned is False


def test_custom_domain_is_assumed_to_have_no_faces() -> None:
    own = load_checkpoint(tiny_checkpoint(dataset_type="bedroom_encode"), domain="bedroom")
    assert preset_of("bedroom").has_faces is None
    treatment = treatment_for(own)
    assert (treatment.prealigned, treatment.identity) == (True, "none")
    assert "assumed to have no faces (--domain faces aligns them)" in treatment.description
    assert treatment_for(own, prealigned=False).identity == "dlib"
    again = load_checkpoint(official_checkpoint(own))
    assert again.domain == "bedroom"


def test_published_layouts_equal_their_presets(shared: Path) -> None:
    treatment = 0
    for path in (shared / "reference" / "layouts").glob("layout_*.json"):
        record = json.loads(path.read_text())
        if "opts" not in record:
            continue
        preset = preset_of(domain_of(record["opts"]))
        treatment += 1
        assert preset.domain in PRESETS
        assert preset.domain != "unknown"
        assert record["encoder_type"].startswith("ResNet") is (preset.has_faces is False)
    assert treatment >= 10


def test_face_models_align_and_measure_identity() -> None:
    faces = treatment_for(model("ffhq_encode"))
    assert (faces.prealigned, faces.identity, faces.fit) == (False, "dlib", "stretch")


@pytest.mark.parametrize("domain", ["cars", "church", "horse", "afhq_wild"])
def test_models_without_faces_skip_alignment_and_identity(domain: str) -> None:
    treatment = treatment_for(model(f"{domain}_encode"))
    assert (treatment.prealigned, treatment.identity) == (True, "none")


def test_treatment_is_described_in_one_line() -> None:
    cars = treatment_for(model("cars_encode")).description
    assert cars == (
        "cars model 'official.pt' (ResNetBackboneEncoder): no face alignment, each image resized "
        "to 192x256, frames of 6x8, no identity metric"
    )
    faces = treatment_for(model("ffhq_encode"), identity="curricular.pth").description
    assert "faces aligned as FFHQ's, cropped to 256x256" in faces
    assert faces.endswith("identity metric curricular.pth")


def test_given_settings_override_the_preset() -> None:
    treatment = treatment_for(model("cars_encode"), identity="moco.pth", fit="crop")
    assert (treatment.prealigned, treatment.identity, treatment.fit) == (True, "moco.pth", "crop")
    assert treatment_for(model("ffhq_encode"), prealigned=True).prealigned


def test_aligning_faces_for_cars_is_refused() -> None:
    with pytest.raises(ConfigError, match="images of cars, which have no faces to align"):
        treatment_for(model("cars_encode"), prealigned=False)


def test_unknown_domain_needs_a_setting() -> None:
    unknown = model(None)
    assert preset_of(unknown.domain).has_faces is None
    with pytest.raises(ConfigError, match=r"--prealigned .* or --no-prealigned"):
        treatment_for(unknown)
    assert treatment_for(unknown, prealigned=False).identity == "dlib"
    assert treatment_for(unknown, prealigned=True).identity == "none"
    assert treatment_for(unknown, prealigned=True, identity="dlib").identity == "dlib"
