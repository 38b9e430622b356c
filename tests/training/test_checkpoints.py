import pytest
import torch

from pipeline.errors import ModelError
from pipeline.storage import Store
from pipeline.training.checkpoints import load_state, save_state


def test_checkpoint_round_trip_leaves_no_partial_file(tmp_path):
    store = Store(str(tmp_path / "sub"))
    assert load_state(store, "state.pt") is None
    save_state(store, "state.pt", {"batches": 3, "live": {"w": torch.ones(2)}})
    state = load_state(store, "state.pt")
    assert state is not None
    assert state["batches"] == 3
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["state.pt"]


def test_damaged_checkpoint_error_names_the_file(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"state\.pt: not a checkpoint"):
        load_state(Store(str(tmp_path)), "state.pt")


def test_checkpoints_are_stored_in_a_bucket(s3):
    store = Store(f"{s3.uri}/run")
    save_state(store, "encoder.pt", {"batches": 1})
    assert load_state(store, "encoder.pt") == {"batches": 1}
