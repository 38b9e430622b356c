"""NVIDIA's pickles load as data: equal images, no code executed, refusals with a reason."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import load_model
from tests.models import nvlabs_pickle
from tests.models.nvlabs_pickle import Layer, network, nvidias_names, pickled, saved_by_torch


def written(content: bytes, folder: Path, name: str = "network-snapshot.pkl") -> str:
    """Write a file with this content and return its path."""
    (folder / name).write_bytes(content)
    return str(folder / name)


def contents() -> dict[str, bytes]:
    """Return the same network in every file format that NVIDIA's files have."""
    generator = network()
    forms = {f"protocol {number}": pickled(generator, number) for number in (2, 3, 4, 5)}
    forms |= {f"zip {zipped}": saved_by_torch(generator, zipped=zipped) for zipped in (True, False)}
    return forms


def test_every_file_format_renders_the_published_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    codes = torch.randn(2, 6, 512, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([nvlabs_pickle.render(network(), code) for code in codes])
    for form, content in contents().items():
        model = load_model(written(content, tmp_path, "ffhq.pkl"))
        with torch.no_grad():
            images, w = model.generator(codes), model.generator.map_z(codes[:, 0])
        assert float(expected.abs().max()) > 1
        torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5, msg=form)
        torch.testing.assert_close(
            w.double(), nvlabs_pickle.map_z(network(), codes[:, 0]), rtol=1e-5, atol=1e-5
        )
        average = network()["mapping"]["w_avg"]
        assert torch.equal(model.latent_avg, average.expand(6, 512))
        assert (model.domain, model.generator_alone, model.generator_size) == ("faces", True, 16)
    assert not Path("executed").exists()


def test_mapping_learning_rate_is_folded_into_weights(tmp_path: Path) -> None:
    model = load_model(written(pickled(network(rate=0.1)), tmp_path))
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mapped = model.generator.map_z(z).double()
    expected = nvlabs_pickle.map_z(network(rate=0.1), z)
    torch.testing.assert_close(mapped, expected, rtol=1e-5, atol=1e-5)


class Attack:
    """Object that creates a folder when Python's own unpickler reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def _hostile_storage() -> bytes:
    """Return a network with a tensor whose memory is itself a pickle."""

    class Storage:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (pickle.dumps(Attack(), protocol=2),)

    class Weight:
        def __reduce__(self) -> tuple[Any, ...]:
            arguments = (Storage(), 0, (12, 4, 4), (16, 4, 1), False, {})
            return torch._utils._rebuild_tensor_v2, arguments

    generator = network()
    generator["synthesis"]["b4"].state["_parameters"]["const"] = Weight()
    return pickled(generator)


def test_no_code_in_a_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = network()
    inside["mapping"].state["w_avg_beta"] = Attack()
    for content, said in (
        (pickled(network(), G=Attack()), r"it names posix\.mkdir"),
        (pickled(inside), r"it names posix\.mkdir"),
        (pickle.dumps(Attack()), r"it names posix\.mkdir"),
        (saved_by_torch(inside, zipped=True), r"the class posix\.mkdir"),
        (_hostile_storage(), "damaged"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            load_model(written(content, tmp_path))
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def _conditional(generator: Layer) -> None:
    generator.state["c_dim"] = 10


def _oblong(generator: Layer) -> None:
    generator["synthesis"]["b4"].parameter("const", torch.zeros(12, 4, 6))


def _third(generator: Layer) -> None:
    generator["synthesis"].child("input", Layer("SynthesisInput"))


def _residual(generator: Layer) -> None:
    generator["synthesis"]["b8"].state["architecture"] = "resnet"


def _narrow(generator: Layer) -> None:
    generator["mapping"].state["z_dim"] = 64


def _unknown(generator: Layer) -> None:
    generator["synthesis"]["b8"]["conv0"].class_name = "AttentionLayer"


def _expanded(generator: Layer) -> None:
    generator["synthesis"]["b8"]["conv1"].state["_parameters"]["weight"] = torch.zeros(1).expand(
        1 << 40
    )


def _other_filter(generator: Layer) -> None:
    generator["synthesis"]["b8"].buffer("resample_filter", torch.ones(4, 4) / 16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_conditional, r"it is conditional \(c_dim 10\)"),
        (_oblong, "it is not square: its images start at 4x6"),
        (_third, "it is a StyleGAN3, and only StyleGAN2 is supported"),
        (_residual, "blocks are of the kind 'resnet'"),
        (_narrow, "its z_dim is 64, expected 512"),
        (_unknown, "its 'conv0' is a AttentionLayer, which is not a known class"),
        (_expanded, "'weight' has more elements than its storage"),
        (_other_filter, r"its resampling filter is not \[1, 3, 3, 1\]"),
    ],
)
def test_unsupported_networks_are_named(tmp_path: Path, change: Any, said: str) -> None:
    generator = network()
    change(generator)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(written(pickled(generator), tmp_path))
    text = str(caught.value)
    assert "damaged" in text or text.endswith("of stylegan2-ada-pytorch")
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"hello", b"\x80\x04}."])
def test_unrelated_pickles_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"network-snapshot\.pkl: (refused|damaged)"):
        load_model(written(content, tmp_path))


def test_tensorflow_network_gets_conversion_advice(tmp_path: Path) -> None:
    content = b"\x80\x02(cdnnlib.tflib.network\nNetwork\n)\x81h\x00t."
    with pytest.raises(ModelError, match=r"a TensorFlow network: .*python legacy\.py"):
        load_model(written(content, tmp_path))


def test_nvidias_modules_are_never_imported(tmp_path: Path) -> None:
    path = written(pickled(network()), tmp_path)
    with nvidias_names():  # its function fails if it is called
        assert load_model(path).generator_size == 16
