import io
import pickle
from pathlib import Path
from random import Random

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError, StorageError
from pipeline.models.files import check_model_file
from pipeline.models.state_files import check_entries, read_state
from tests.storage import cut_off

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3)}


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_torch_and_safetensors_files_give_the_same_tensors(tmp_path):
    torch.save(STATE, tmp_path / "face.pth")
    save_file(STATE, tmp_path / "face.safetensors")
    for name in ("face.pth", "face.safetensors"):
        state, sha256 = read_state(str(tmp_path / name))
        assert torch.equal(state["layer.weight"], STATE["layer.weight"])
        assert len(sha256) == 64


def test_state_files_are_read_from_any_fsspec_uri(tmp_path):
    torch.save(STATE, tmp_path / "face.pth")
    state, _ = read_state(f"file://{tmp_path}/face.pth")
    assert torch.equal(state["layer.weight"], STATE["layer.weight"])


def test_an_interrupted_download_is_not_reported_as_damage():
    cut_off.register()
    with fsspec.open("memory://weights/face.pth", "wb") as sink:
        torch.save(STATE, sink)
    with pytest.raises(StorageError, match="reset by peer"):
        read_state("breaks://weights/face.pth")
    with pytest.raises(ModelError, match=r"no weights at breaks://weights/none\.pth"):
        read_state("breaks://weights/none.pth")


@pytest.mark.parametrize("name", ["nowhere.pth", "null\0.pth", "\ud800.pth"])
def test_a_missing_weight_file_is_named(tmp_path, name):
    nowhere, undecodable = f"file://{tmp_path}/nowhere.pth", f"file://{tmp_path}/\ud800.pth"
    for place in (f"{tmp_path}/{name}", nowhere, undecodable):
        with pytest.raises(ModelError, match=r"no MoCo weights at .*\.pth"):
            read_state(place, "MoCo weights")
        with pytest.raises(ModelError, match=r"no MoCo weights at .*\.pth"):
            check_model_file(place, "MoCo weights")


@pytest.mark.parametrize("content", [b"", pickle.dumps({"layer": [1]}, protocol=2)])
def test_an_error_names_the_purpose_of_the_file(tmp_path, content):
    (tmp_path / "r50.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"^backbone weights '.*r50\.pth': "):
        read_state(str(tmp_path / "r50.pth"), "backbone weights")


@pytest.mark.parametrize("name", ["face.pth", "face.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_another_file_type_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as raised:
        read_state(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_damaged_file_is_refused_in_one_line(tmp_path, zipped):
    sink = io.BytesIO()
    torch.save(STATE, sink, _use_new_zipfile_serialization=zipped)
    path, refused = tmp_path / "face.pth", []
    for seed in range(400):
        draw, content = Random(seed), bytearray(sink.getvalue())
        content[draw.randrange(len(content) // 2)] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_state(str(path))
        except ModelError as error:
            refused.append(error)
    assert all("face.pth" in str(error) for error in refused)
    assert all("give another" in str(error) for error in refused)
    causes = {type(error.__cause__) for error in refused}
    assert {UnicodeDecodeError, pickle.UnpicklingError} <= causes, "damage of several kinds"


def test_no_code_in_a_file_is_executed(tmp_path):
    trace = tmp_path / "executed"
    (tmp_path / "face.pth").write_bytes(pickle.dumps(Attack(trace), protocol=2))
    with pytest.raises(ModelError, match="refused, it holds the class"):
        read_state(str(tmp_path / "face.pth"))
    assert not trace.exists()


def test_training_checkpoint_gives_its_state_dict(tmp_path):
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": STATE}, tmp_path / "face.pth")
    state, _ = read_state(str(tmp_path / "face.pth"))
    assert list(state) == ["layer.weight"]


@pytest.mark.parametrize(
    "state",
    [
        {"layer": [1, 2]},
        {7: torch.zeros(2)},
        {"layer": torch.zeros(4, 4).to_sparse()},
        {"layer": torch.zeros(2, device="meta")},
    ],
)
def test_a_file_without_tensors_is_refused(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "face.pth")
    with pytest.raises(ModelError, match="not a state dict of tensors"):
        read_state(str(tmp_path / "face.pth"))


@pytest.mark.parametrize("given", [{"bias": STATE["layer.weight"]}, {"layer.weight": None}, {}])
def test_mismatched_entries_are_counted_and_the_first_named(given):
    with pytest.raises(
        ModelError, match=r"^x\.pth is not a network y: \d of 1 entries differ.*'layer\.weight'"
    ):
        check_entries(STATE, given, "x.pth is not a network y")
    check_entries(STATE, {"layer.weight": torch.zeros(2, 3)}, "x.pth is not a network y")


def test_expanded_tensor_is_refused_before_it_is_copied(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(1).expand(1 << 35)}, path)
    with pytest.raises(ModelError, match="its tensors have 137438953472 bytes"):
        read_state(str(path))
