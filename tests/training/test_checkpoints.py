import pytest
import torch

from pipeline.errors import ModelError
from pipeline.storage import Store
from pipeline.training.checkpoints import Checkpoints


def test_checkpoint_round_trip_leaves_no_partial_file(tmp_path):
    checkpoints = Checkpoints(Store(str(tmp_path / "sub")), "state")
    assert checkpoints.load() is None
    checkpoints.save({"batches": 3, "live": {"w": torch.ones(2)}})
    state = checkpoints.load()
    assert state is not None
    assert state["batches"] == 3
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["state.pt"]


def test_damaged_checkpoint_error_names_the_file(tmp_path):
    checkpoints = Checkpoints(Store(str(tmp_path)), "state")
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"state\.pt: not a checkpoint"):
        checkpoints.load()


def test_checkpoints_are_stored_in_a_bucket(s3):
    checkpoints = Checkpoints(Store(f"{s3.uri}/run"), "encoder")
    checkpoints.save({"batches": 1})
    checkpoints.save_best({"batches": 2})
    assert checkpoints.load() == {"batches": 1}
    assert checkpoints.load_best() == {"batches": 2}
